//go:build unix

package filestore_test

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

var preemptions = flag.Int("preemptions", 2, "how often TestExplore stops a process that could go on")

// TestExplore runs processes that work on one record, stopping each before every file-system call. It runs all
// schedules with at most two preemptions (a process is stopped although it could go on), and all with one kill and
// one preemption; with three processes, one preemption less; and with the hashed layout, where the calls are the same
// and only the names differ, another one less. The results of each schedule must be linearizable: those of some order
// of the calls, each taking effect at one moment between its start and its end. After each, a new process must be able to load, save and
// delete the record, and nothing may be left behind.
//
// Attack 15 is among them: a Save that sleeps while the record is deleted, and made anew, and saved again.
func TestExplore(t *testing.T) {
	const r1, a, b, c, n, m = 1, 2, 3, 4, 5, 6 // revisions
	absent, live, expired, ending := 0, r1, -r1, r1
	type process = []call
	tests := []struct {
		name      string
		start     int
		processes []process
	}{
		{"Save || Save", live, []process{{save(r1, a)}, {save(r1, b)}}},
		{"Save || Load Load", live, []process{{save(r1, a)}, {load, load}}},
		{"Save || Load Save Load", live, []process{{save(r1, a)}, {load, save(r1, b), load}}},
		{"Save || Delete", live, []process{{save(r1, a)}, {del, load}}},
		{"Save || Save Save", live, []process{{save(r1, a)}, {save(r1, b), save(b, c)}}},
		{"Save || Save Save back", live, []process{{save(r1, a)}, {save(r1, b), save(b, r1), load}}},
		{"Save || Delete anew Load", live, []process{{save(r1, a), load}, {del, save(0, n), load}}},
		{"Save || Delete anew Save", live, []process{{save(r1, a)}, {del, save(0, n), save(n, m)}}},
		{"Save Save || Delete anew", live, []process{{save(r1, a), save(a, b)}, {del, save(0, n), load}}},
		{"Delete || Delete anew", live, []process{{del}, {del, save(0, n), load}}},
		{"Delete || Save Load", live, []process{{del}, {save(r1, a), load, save(a, b), load}}},
		{"Save || sweep", live, []process{{save(r1, a), load}, {sweep, load, sweep}}},
		{"Save || Save || Load", live, []process{{save(r1, a)}, {save(r1, b)}, {load, load}}},
		{"Save || Save || Delete", live, []process{{save(r1, a)}, {save(r1, b)}, {del, load}}},
		{"Save || Save Save || sweep", live, []process{{save(r1, a)}, {save(r1, b), save(b, c)}, {sweep}}},
		{"Save || Delete || anew", live, []process{{save(r1, a)}, {del}, {save(0, n), load}}},
		{"full disk: Save || Delete", live, []process{{save(r1, a), load}, {fullDel, load}}},
		{"full disk: Delete || Delete anew", live, []process{{fullDel}, {del, save(0, n), load}}},
		{"full disk: Save Delete || Save || sweep", live, []process{{save(r1, a), fullDel, load}, {save(r1, b)}, {sweep}}},
		{"create || create", absent, []process{{save(0, n)}, {save(0, m), load}}},
		{"create || Delete", absent, []process{{save(0, n), load}, {del, load}}},
		{"create || create || Delete", absent, []process{{save(0, n)}, {save(0, m)}, {del, load}}},
		{"expired: create || create", expired, []process{{save(0, n), load}, {save(0, m), load}}},
		{"expired: create || Load", expired, []process{{save(0, n), load}, {load, load}}},
		{"expired: create || sweep", expired, []process{{save(0, n), load}, {sweep, load}}},
		{"expired: create Delete || sweep", expired, []process{{save(0, n), del, load}, {sweep}}},
		{"expired: create || stale Save", expired, []process{{save(0, n), load}, {save(r1, a), load}}},
		{"expired: create || Delete", expired, []process{{save(0, n), load}, {del, load}}},
		{"expired: create || create || sweep", expired, []process{{save(0, n)}, {save(0, m)}, {sweep, load}}},
		{"expired: Load || create Save", expired, []process{{load}, {save(0, n), save(n, m), load}}},
		{"ending: Save || Load", ending, []process{{save(r1, a), load}, {expire, load, load}}},
		{"ending: Save || sweep", ending, []process{{save(r1, a), load}, {expire, sweep, load}}},
		{"ending: Save || create", ending, []process{{save(r1, a), load}, {expire, save(0, n), load}}},
		{"ending: Save || create || Load", ending, []process{{save(r1, a)}, {expire, save(0, n)}, {load, load}}},
		{"ending: Save || Delete", ending, []process{{save(r1, a)}, {expire, del, load}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := newExplorer(t, filestore.Config{}, tt.start, tt.processes)
				n := *preemptions
				if len(tt.processes) > 2 {
					n-- // three processes meet in enough ways by themselves
				}
				t.Logf("%d schedules, %d with a kill", e.explore(bounds{preemptions: n}), e.explore(bounds{preemptions: n - 1, kills: 1}))
				hashed := newExplorer(t, filestore.Config{Layout: filestore.Hashed}, tt.start, tt.processes)
				t.Logf("hashed: %d schedules, %d with a kill", hashed.explore(bounds{preemptions: n - 1}), hashed.explore(bounds{kills: 1}))
			})
		})
	}
}

// call is one call of a process. Only save and touch use the revisions.
type call struct {
	op        string
	prev, rev uint64
}

var (
	load    = call{op: "Load"}
	del     = call{op: "Delete"}
	fullDel = call{op: "Delete on a full disk"}
	sweep   = call{op: "sweep"}
	expire  = call{op: "expire"} // time passes, and the record that was there at the start expires
)

func touch(prev, rev uint64) call { return call{"Touch", prev, rev} }

func save(prev, rev uint64) call { return call{"Save", prev, rev} }

func (c call) String() string {
	if c.op == "Save" || c.op == "Touch" {
		return fmt.Sprintf("%s(%d over %d)", c.op, c.rev, c.prev)
	}
	return c.op
}

const (
	shortTTL = time.Minute
	longTTL  = 1000 * time.Hour
)

var errKilled = errors.New("killed")

// explorer runs processes in all orders.
type explorer struct {
	t         *testing.T
	start     int
	processes [][]call
	config    filestore.Config
	dir       string
	stores    []*filestore.Store // one a process
	plain     *filestore.Store
	running   []*process
	unknown   int // calls that returned ErrUnavailable, with network=nfs
}

// bounds are how much of each happens in a schedule at most.
type bounds struct{ preemptions, kills, faults int }

// process is one of the processes of a run.
type process struct {
	calls   []call
	before  chan string   // the call that it is about to make; "" at the end of an operation
	resume  chan response // to it
	at      string        // the last of before
	started int           // operations
	done    int
	killed  bool
}

// response makes a call, or not, and answers it.
type response func(do func() error) error

func asked(do func() error) error { return do() }
func killed(func() error) error   { return errKilled }

func newExplorer(t *testing.T, c filestore.Config, start int, processes [][]call) *explorer {
	e := &explorer{t: t, config: c, start: start, processes: processes, dir: fastDir(t)}
	open := func(step func(call, name string, do func() error) error) *filestore.Store {
		s, err := filestore.OpenIntercepted(t.Context(), e.dir, c, step)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	for i := range processes {
		e.stores = append(e.stores, open(func(call, name string, do func() error) error {
			if e.running == nil {
				return do() // it is being opened
			}
			p := e.running[i]
			if p.killed {
				return errKilled
			}
			p.before <- call + " " + name
			return (<-p.resume)(do)
		}))
	}
	e.plain = open(nil)
	return e
}

// choice is one of the decisions of a schedule: which of several ways to go on was taken.
type choice struct{ taken, of int }

// explore runs every schedule within the bounds and returns how many there are.
func (e *explorer) explore(b bounds) (schedules int) {
	var path []choice
	for {
		path = e.run(path, b)
		schedules++
		if e.t.Failed() {
			return schedules
		}
		for len(path) > 0 && path[len(path)-1].taken == path[len(path)-1].of-1 {
			path = path[:len(path)-1]
		}
		if len(path) == 0 {
			return schedules
		}
		path[len(path)-1].taken++
	}
}

// run follows path as far as it goes and takes the first way from there on. It returns the path it took.
func (e *explorer) run(path []choice, left bounds) []choice {
	e.t.Helper()
	id := mustID(e.t)
	h := &history{maybe: e.config.Network == filestore.NFS}
	if e.start != 0 {
		rec := newRecord("1", shortTTL)
		if e.start < 0 {
			rec.Expires = time.Now().Add(-time.Minute)
		}
		rec.Revision = 1
		mustSave(e.t, e.plain, id, rec, 0)
		if e.start > 0 {
			h.state = 1
		}
	}
	e.running = nil
	for _, calls := range e.processes {
		e.running = append(e.running, &process{calls: calls, before: make(chan string), resume: make(chan response)})
	}
	var trace []string
	depth, last := 0, -1
	choose := func(of int) int {
		if depth == len(path) {
			path = append(path, choice{0, of})
		}
		if path[depth].of != of {
			e.t.Fatalf("schedule not repeatable: %d ways to go on, %d before; after\n%s", of, path[depth].of, strings.Join(trace, "\n"))
		}
		depth++
		return path[depth-1].taken
	}
	for {
		// The first way is to let the last process go on.
		var ways []int
		for i, p := range e.running {
			if p.killed || p.done == len(p.calls) {
				continue
			}
			if i == last {
				ways = append([]int{i}, ways...)
			} else {
				ways = append(ways, i)
			}
		}
		if len(ways) == 0 {
			break
		}
		canGoOn := ways[0] == last
		if canGoOn && left.preemptions == 0 {
			ways = ways[:1]
		}
		const kill, fault = -1, -2 // fault and below: faults
		var faults []networkFault
		if p := e.running[ways[0]]; canGoOn && p.started > p.done {
			if left.kills > 0 {
				ways = append(ways, kill)
			}
			if left.faults > 0 {
				faults = faultsOf(p.at)
				for i := range faults {
					ways = append(ways, fault-i)
				}
			}
		}
		way := ways[0]
		if len(ways) > 1 {
			way = ways[choose(len(ways))]
		}
		switch {
		case way <= fault:
			left.faults--
			h.broken = true
			f := faults[fault-way]
			trace = append(trace, fmt.Sprintf("process %d: %s of %s", last, f.name, e.running[last].at))
			trace = append(trace, e.advance(last, id, h, f.respond))
			continue
		case way == kill:
			left.kills--
			h.broken = true
			trace = append(trace, fmt.Sprintf("process %d is killed", last))
			e.kill(last)
			continue
		case canGoOn && way != last:
			left.preemptions--
		}
		last = way
		trace = append(trace, e.advance(way, id, h, asked))
	}
	e.epilogue(id, h)
	if !h.linearizable() {
		e.t.Errorf("not linearizable from state %d:\n%s\nafter\n%s", h.state, h, strings.Join(trace, "\n"))
	}
	return path
}

// advance lets a process start its next operation, or make the call it waits before, and go on until the next.
func (e *explorer) advance(i int, id driver.ID, h *history, r response) string {
	p := e.running[i]
	if p.started == p.done {
		c := p.calls[p.started]
		p.started++
		op := h.begin(i, c)
		go func() {
			err := e.do(e.stores[i], c, id, op)
			if !p.killed {
				h.end(op, err)
			}
			if h.isUnknown(op) {
				e.unknown++
			}
			p.before <- ""
		}()
	} else {
		p.resume <- r
	}
	at := <-p.before
	p.at = at
	if at == "" {
		p.done++
		return fmt.Sprintf("process %d ends %v", i, p.calls[p.done-1])
	}
	return fmt.Sprintf("process %d in %v before %s", i, p.calls[p.done], at)
}

// kill ends a process before the call it waits before.
func (e *explorer) kill(i int) {
	p := e.running[i]
	p.killed = true
	p.resume <- killed
	<-p.before
}

func (e *explorer) do(s *filestore.Store, c call, id driver.ID, op *operation) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // longer than a process is stopped
	defer cancel()
	switch c.op {
	case "Load":
		rec, err := s.Load(ctx, id)
		op.loaded = rec.Revision
		return err
	case "Save":
		rec := newRecord("x", longTTL)
		rec.Revision = c.rev
		return s.Save(ctx, id, rec, c.prev)
	case "Touch":
		rec := newRecord("1", longTTL)
		rec.Revision = c.rev
		return s.Touch(ctx, id, rec, c.prev)
	case "Delete":
		return s.Delete(ctx, id)
	case "Delete on a full disk":
		return s.DeleteInPlace(id)
	case "sweep":
		return s.SweepRecord(ctx, id)
	case "expire":
		time.Sleep(2 * shortTTL)
		return nil
	}
	panic(c.op)
}

// epilogue uses the record as a new process would: nothing may be in its way.
func (e *explorer) epilogue(id driver.ID, h *history) {
	do := func(c call) *operation {
		op := h.begin(-1, c)
		h.end(op, e.do(e.plain, c, id, op))
		return op
	}
	for try := 0; ; try++ {
		l := do(load)
		s := do(save(l.loaded, uint64(100+try)))
		if s.err == nil {
			break
		}
		if try == 1 { // the first may have finished what a killed process began
			e.t.Errorf("after the end of all processes: Load: %v, Save: %v", l.err, s.err)
			break
		}
	}
	do(load)
	do(sweep)
	at := filepath.Join(e.dir, e.place(id))
	if entries, err := os.ReadDir(at); err != nil || len(entries) != 2 {
		e.t.Errorf("after a sweep the record's directory holds %v (%v), want data and token", entries, err)
	}
	do(del)
	do(load)
	if h.maybe {
		time.Sleep(2 * shortTTL) // an ended record stays for a while
		do(sweep)
	}
	left, _ := filepath.Glob(at + "*")
	for _, path := range left {
		if !h.broken || !strings.Contains(path, ".new-") && !strings.Contains(path, ".end-") {
			e.t.Errorf("left behind: %s", path)
		}
		if err := os.RemoveAll(path); err != nil {
			e.t.Fatal(err)
		}
	}
}

func (e *explorer) place(id driver.ID) string {
	if e.config.Network == filestore.NFS {
		return nfsPlace(id)
	}
	return place(e.config.Layout, id)
}

func mustID(t testing.TB) (id driver.ID) {
	t.Helper()
	if _, err := rand.Read(id[:]); err != nil {
		t.Fatal(err)
	}
	return id
}
