//go:build linux

package nfstest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

// pair is a store that two machines have open.
type pair struct {
	*machines
	t       *testing.T
	name    string
	onA, on *filestore.Store // machine a's and machine b's
}

func newPair(t *testing.T, o ClientOptions) *pair {
	t.Helper()
	m := newMachines(t, o)
	p := &pair{machines: m, t: t, name: m.newDir()}
	p.onA = openStore(t, m.a, p.name, filestore.Config{})
	p.on = openStore(t, m.b, p.name, filestore.Config{})
	return p
}

func newID() (id driver.ID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

func newRecord(n string) driver.Record {
	now := time.Now().Truncate(time.Millisecond)
	return driver.Record{Created: now, Seen: now, Expires: now.Add(time.Hour), Revision: driver.NewRevision(0), Fields: field(driver.Fields{}, n)}
}

func field(f driver.Fields, n string) driver.Fields {
	return f.With(driver.Change{Name: "n", Value: []byte(n)})
}

func next(rec driver.Record, n string) driver.Record {
	rec.Revision = driver.NewRevision(rec.Revision)
	rec.Fields = field(rec.Fields, n)
	return rec
}

// want checks that a machine's store has the record, "" being none.
func (p *pair) want(what string, s *filestore.Store, id driver.ID, want string) {
	p.t.Helper()
	rec, err := s.Load(p.t.Context(), id)
	n, _ := rec.Fields.Get("n")
	if errors.Is(err, driver.ErrNotFound) {
		err = nil
	}
	if err != nil || string(n) != want {
		p.t.Errorf("%s: Load = %q, %v, want %q", what, n, err, want)
	}
}

// operation is a call on a record "old", or on none, that leaves "new" or nothing.
type operation struct {
	name  string
	start string
	do    func(s *filestore.Store, id driver.ID, rec driver.Record) error
	want  string
}

var operations = []operation{
	{"create", "", func(s *filestore.Store, id driver.ID, _ driver.Record) error {
		return s.Save(context.Background(), id, newRecord("new"), 0)
	}, "new"},
	{"create over ended", "ended", func(s *filestore.Store, id driver.ID, _ driver.Record) error {
		return s.Save(context.Background(), id, newRecord("new"), 0)
	}, "new"},
	{"Save", "old", func(s *filestore.Store, id driver.ID, rec driver.Record) error {
		return s.Save(context.Background(), id, next(rec, "new"), rec.Revision)
	}, "new"},
	{"Touch", "old", func(s *filestore.Store, id driver.ID, rec driver.Record) error {
		return s.Touch(context.Background(), id, next(rec, "old"), rec.Revision)
	}, "old"},
	{"Delete", "old", func(s *filestore.Store, id driver.ID, _ driver.Record) error {
		return s.Delete(context.Background(), id)
	}, ""},
}

// begin makes what the operation starts from, on machine a.
func (p *pair) begin(o operation) (id driver.ID, rec driver.Record) {
	p.t.Helper()
	id, rec = newID(), newRecord("old")
	if o.start != "" {
		must(p.t, p.onA.Save(p.t.Context(), id, rec, 0))
	}
	if o.start == "ended" {
		must(p.t, p.onA.Delete(p.t.Context(), id))
	}
	return id, rec
}

// before returns what is there before the operation.
func (o operation) before() string {
	if o.start == "old" {
		return "old"
	}
	return ""
}

// TestFilestoreLostAnswers loses the answer to each request of each operation in turn. The store says that it was done, as
// it was, and both machines see it; so it does after the request has been sent again late, when the other machine has
// changed the record.
func TestFilestoreLostAnswers(t *testing.T) {
	for _, version := range []int{3, 4} {
		p := newPair(t, ClientOptions{Version: version})
		for _, o := range operations {
			for skip := 0; ; skip++ {
				id, rec := p.begin(o)
				p.a.Inject(Fault{Kind: LostAnswer, Ops: Changes(), Skip: skip})
				p.a.Calls()
				err := o.do(p.onA, id, rec)
				p.a.ClearFaults()
				changes := 0
				for op, n := range p.a.Calls() {
					if op.changes() {
						changes += n
					}
				}
				what := fmt.Sprintf("v%d %s, answer %d lost", version, o.name, skip)
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				p.want(what+", the other machine", p.on, id, o.want)
				p.want(what, p.onA, id, o.want)
				if changes <= skip {
					if skip < 1 {
						t.Errorf("%s makes %d changes", o.name, changes)
					}
					break
				}
			}
			// A copy of each request comes when others have gone on.
			for skip := 0; ; skip++ {
				id, rec := p.begin(o)
				p.a.Inject(Fault{Kind: Repeat, Ops: Changes(), Skip: skip, Hold: true})
				must(t, o.do(p.onA, id, rec))
				if p.a.Held() == 0 {
					p.a.ClearFaults()
					break
				}
				what := fmt.Sprintf("v%d %s, request %d repeated late", version, o.name, skip)
				rec, err := p.on.Load(t.Context(), id)
				want := "later"
				if err == nil {
					must(t, p.on.Save(t.Context(), id, next(rec, want), rec.Revision))
				} else {
					must(t, p.on.Save(t.Context(), id, newRecord(want), 0))
				}
				p.a.Release()
				eventually(t, func() bool { return p.a.Held() == 0 })
				time.Sleep(2 * time.Millisecond) // until it has been executed
				p.want(what, p.onA, id, want)
				p.want(what+", the other machine", p.on, id, want)
				must(t, p.on.Delete(t.Context(), id))
				p.want(what+", and deleted", p.onA, id, "")
			}
		}
	}
}

// changes reports whether a request changes something.
func (op Op) changes() bool {
	for _, c := range Changes() {
		if c == op {
			return true
		}
	}
	return false
}

// TestFilestoreFaults lets each request of each operation fail in each way: the store says ErrUnavailable or ErrReadOnly or
// that it was done, never that the record is absent or another's, and the record is the old or the new one.
func TestFilestoreFaults(t *testing.T) {
	p := newPair(t, ClientOptions{Version: 3})
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EACCES, syscall.ESTALE} {
		for _, o := range operations {
			for skip := 0; ; skip++ {
				id, rec := p.begin(o)
				p.a.Inject(Fault{Kind: Fail, Err: errno, Skip: skip})
				p.a.Calls()
				err := o.do(p.onA, id, rec)
				p.a.ClearFaults()
				requests := 0
				for _, n := range p.a.Calls() {
					requests += n
				}
				if requests <= skip {
					break
				}
				what := fmt.Sprintf("%s, request %d is %v: %v", o.name, skip, errno, err)
				after, loadErr := p.on.Load(t.Context(), id)
				n, _ := after.Fields.Get("n")
				got := string(n)
				switch {
				case loadErr != nil && !errors.Is(loadErr, driver.ErrNotFound):
					t.Errorf("%s: the other machine: %v", what, loadErr)
				case err == nil && got != o.want:
					t.Errorf("%s, and the record is %q", what, got)
				case err == nil:
				case !errors.Is(err, driver.ErrUnavailable) && !errors.Is(err, driver.ErrReadOnly):
					t.Errorf("%s, want ErrUnavailable or ErrReadOnly", what)
				case errors.Is(err, driver.ErrReadOnly) && got != o.before():
					t.Errorf("%s, and the record is %q", what, got)
				case got != o.before() && got != o.want:
					t.Errorf("%s, and the record is %q", what, got)
				case strings.Contains(err.Error(), id.Hex()):
					t.Errorf("the error has the whole ID: %s", what)
				}
				p.want(what+"; machine a afterwards", p.onA, id, got)
			}
		}
	}
}

// TestFilestoreHistories: machines that add to the same records, while answers get lost, requests are repeated late, delayed
// and fail: what was acknowledged is there, and nothing else but what may have happened.
func TestFilestoreHistories(t *testing.T) {
	for _, o := range []ClientOptions{{Version: 3}, {Version: 4}, {Version: 4, LookupCache: "pos"}} {
		t.Run(fmt.Sprintf("v%d %s", o.Version, o.LookupCache), func(t *testing.T) {
			p := newPair(t, o)
			for i, c := range []*Client{p.a, p.b} {
				for j, f := range []Fault{
					{Kind: LostAnswer, Ops: []Op{Rename}, Probability: 0.1},
					{Kind: LostAnswer, Ops: Changes(), Probability: 0.03},
					{Kind: Repeat, Ops: Changes(), Probability: 0.03, After: 20 * time.Millisecond},
					{Kind: DelayAnswer, Ops: []Op{Rename}, Probability: 0.05, After: 10 * time.Millisecond},
					{Kind: Fail, Err: syscall.EIO, Probability: 0.002},
					{Kind: Fail, Err: syscall.ESTALE, Ops: []Op{Getattr, Lookup, Read, Readdir}, Probability: 0.01},
				} {
					f.Count, f.Seed = Always, uint64(10*i+j)
					c.Inject(f)
				}
			}
			ids := []driver.ID{newID(), newID()}
			for _, id := range ids {
				p.begun(id)
			}
			const perMachine = 3
			times := testserver.Scale(15, 300)
			var workers sync.WaitGroup
			type tally struct{ acked, unknown int }
			tallies := make([][]tally, len(ids))
			for i := range ids {
				tallies[i] = make([]tally, 2*perMachine)
			}
			for w := range 2 * perMachine {
				s := []*filestore.Store{p.onA, p.on}[w%2]
				workers.Go(func() {
					for n := range times {
						i := n % len(ids)
						switch err := p.add(s, ids[i], "w"+strconv.Itoa(w)); {
						case err == nil:
							tallies[i][w].acked++
						case errors.Is(err, driver.ErrUnavailable):
							tallies[i][w].unknown++
						default:
							t.Errorf("worker %d: %v", w, err)
						}
					}
				})
			}
			workers.Wait()
			p.a.ClearFaults()
			p.b.ClearFaults()
			acked, unknown := 0, 0
			for i, id := range ids {
				rec, err := p.onA.Load(t.Context(), id)
				must(t, err)
				sum := 0
				for w, tally := range tallies[i] {
					n := number(rec, "w"+strconv.Itoa(w))
					if n < tally.acked || n > tally.acked+tally.unknown {
						t.Errorf("worker %d: %d in the record, %d acknowledged, %d unknown", w, n, tally.acked, tally.unknown)
					}
					sum += n
					acked += tally.acked
					unknown += tally.unknown
				}
				if total := number(rec, "total"); total != sum {
					t.Errorf("total = %d, sum of all %d", total, sum)
				}
				other, err := p.on.Load(t.Context(), id)
				must(t, err)
				if other.Revision != rec.Revision {
					t.Error("the machines see two states")
				}
				must(t, p.on.Delete(t.Context(), id))
				p.want("deleted on the other machine", p.onA, id, "")
			}
			if acked < unknown {
				t.Errorf("%d additions acknowledged, %d unknown: that proves little", acked, unknown)
			}
			t.Logf("%d additions acknowledged, %d unknown", acked, unknown)
		})
	}
}

// begun makes a record, whatever it takes.
func (p *pair) begun(id driver.ID) {
	p.t.Helper()
	for {
		err := p.onA.Save(p.t.Context(), id, newRecord("0"), 0)
		if err == nil || errors.Is(err, driver.ErrConflict) {
			return
		}
		if !errors.Is(err, driver.ErrUnavailable) {
			p.t.Fatal(err)
		}
	}
}

// add adds 1 to two fields, as the Manager would.
func (p *pair) add(s *filestore.Store, id driver.ID, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		rec, err := s.Load(ctx, id)
		if errors.Is(err, driver.ErrUnavailable) {
			continue // nothing was tried yet
		}
		if err != nil {
			return fmt.Errorf("load: %w", err)
		}
		prev := rec.Revision
		rec.Revision = driver.NewRevision(prev)
		for _, f := range []string{name, "total"} {
			rec.Fields = rec.Fields.With(driver.Change{Name: f, Value: []byte(strconv.Itoa(number(rec, f) + 1))})
		}
		if err := s.Save(ctx, id, rec, prev); !errors.Is(err, driver.ErrConflict) {
			return err
		}
	}
}

func number(rec driver.Record, name string) int {
	v, _ := rec.Fields.Get(name)
	n, _ := strconv.Atoi(string(v))
	return n
}

// TestFilestoreHangs: a file server that does not answer costs callers their deadline and no more, of the machine that cannot
// reach it; Close returns; and when it answers, all goes on.
func TestFilestoreHangs(t *testing.T) {
	p := newPair(t, ClientOptions{Version: 3})
	id, rec := newID(), newRecord("old")
	must(t, p.onA.Save(t.Context(), id, rec, 0))
	p.a.Inject(Fault{Kind: Delay, Count: Always, Hold: true})
	const patience = 300 * time.Millisecond
	var calls sync.WaitGroup
	for i := range 100 { // more than may hang at once
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var err error
			switch start := time.Now(); i % 4 {
			case 0:
				_, err = p.onA.Load(ctx, id)
			case 1:
				err = p.onA.Save(ctx, id, next(rec, "new"), rec.Revision)
			case 2:
				err = p.onA.Delete(ctx, newID())
			case 3:
				_, err = p.onA.Stat(ctx)
			default:
				_ = start
			}
			if !errors.Is(err, driver.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, driver.ErrNotFound) {
				t.Errorf("call %d = %v, want ErrUnavailable", i, err)
			}
		})
	}
	done := make(chan struct{})
	go func() { calls.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("calls outlive their deadlines")
	}
	p.want("the other machine", p.on, id, "old")
	must(t, p.on.Save(t.Context(), id, next(rec, "other"), rec.Revision))
	third := openContext(t, p.a, p.name, patience)
	if !errors.Is(third, driver.ErrUnavailable) {
		t.Errorf("Open = %v, want ErrUnavailable", third)
	}
	p.a.ClearFaults()
	for p.a.Held() > 0 {
		p.a.Release()
		time.Sleep(time.Millisecond)
	}
	p.want("afterwards", p.onA, id, "other")

	p.a.Inject(Fault{Kind: Delay, Count: Always, Hold: true})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := p.onA.Load(ctx, id)
	if !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("Load = %v", err)
	}
	start := time.Now()
	must(t, p.onA.Close())
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("Close took %v", took)
	}
	if _, err := p.onA.Load(t.Context(), id); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("Load after Close = %v", err)
	}
	p.a.ClearFaults()
	for p.a.Held() > 0 {
		p.a.Release()
		time.Sleep(time.Millisecond)
	}
}

func openContext(t *testing.T, c *Client, name string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := filestore.Open(ctx, filepath.Join(c.dir, name), filestore.Config{Network: filestore.NFS, SweepEvery: -1})
	if err == nil {
		return s.Close()
	}
	return err
}

// TestFilestoreServerCrash: what was acknowledged is there after the server was down, and what it had not yet written to its
// disk was not acknowledged.
func TestFilestoreServerCrash(t *testing.T) {
	p := newPair(t, ClientOptions{Version: 3})
	id, rec := newID(), newRecord("0")
	must(t, p.onA.Save(t.Context(), id, rec, 0))
	for round := range 10 {
		stop := make(chan struct{})
		acked, unknown := 0, 0
		var adding sync.WaitGroup
		adding.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := p.add(p.onA, id, fmt.Sprint("round", round)); err == nil {
					acked++
				} else if errors.Is(err, driver.ErrUnavailable) {
					unknown++
				} else {
					t.Error(err)
				}
			}
		})
		time.Sleep(time.Duration(5+round) * time.Millisecond)
		p.server.Crash()
		time.Sleep(5 * time.Millisecond)
		p.server.Recover()
		close(stop)
		adding.Wait()
		rec, err := p.on.Load(t.Context(), id)
		must(t, err)
		if n := number(rec, fmt.Sprint("round", round)); n < acked || n > acked+unknown {
			t.Errorf("round %d: %d in the record, %d acknowledged, %d unknown", round, n, acked, unknown)
		}
	}
}

// TestFilestoreFresh: what one machine writes, another that has cached everything reads at once: the server tells that the
// directory has changed. Where its clock is too coarse to tell, as with NFSv3 on older servers, a read may be as old as the
// cache believes attributes; writes are decided by the server all the same.
func TestFilestoreFresh(t *testing.T) {
	for _, version := range []int{3, 4} {
		p := newPair(t, ClientOptions{Version: version})
		for range 20 {
			id := newID()
			p.want("absent", p.onA, id, "")
			p.want("absent", p.onA, id, "")
			rec := newRecord("1")
			must(t, p.on.Save(t.Context(), id, rec, 0))
			p.want("made by the other machine", p.onA, id, "1")
			second := next(rec, "2")
			must(t, p.on.Save(t.Context(), id, second, rec.Revision))
			if err := p.onA.Save(t.Context(), id, next(rec, "3"), rec.Revision); !errors.Is(err, driver.ErrConflict) {
				t.Errorf("Save from before the other machine's = %v", err)
			}
			p.want("saved by the other machine", p.onA, id, "2")
			must(t, p.on.Delete(t.Context(), id))
			p.want("deleted by the other machine", p.onA, id, "")
			must(t, p.onA.Save(t.Context(), id, newRecord("4"), 0))
			p.want("made anew", p.on, id, "4")
		}
	}
	s := Start(t, Options{Granularity: time.Hour}) // no change shows
	o := ClientOptions{Version: 3}
	p := &pair{machines: &machines{server: s, a: s.Mount(t, o), b: s.Mount(t, o)}, t: t, name: "sessions"}
	p.onA = openStore(t, p.a, p.name, filestore.Config{})
	p.on = openStore(t, p.b, p.name, filestore.Config{})
	id, rec := newID(), newRecord("1")
	must(t, p.onA.Save(t.Context(), id, rec, 0))
	p.want("saved", p.on, id, "1")
	must(t, p.onA.Save(t.Context(), id, next(rec, "2"), rec.Revision))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	stale, err := p.on.Load(ctx, id)
	n, _ := stale.Fields.Get("n")
	t.Logf("with a clock of hours, right after a Save on the other machine: %q, %v", n, err)
	if errors.Is(err, driver.ErrNotFound) {
		t.Error("a stale list says that the record is absent")
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := p.on.Save(ctx, id, next(rec, "3"), rec.Revision); err == nil {
		t.Error("a Save from a stale list succeeded")
	}
	p.b.Advance(time.Minute)
	p.want("after a minute", p.on, id, "2")
}

// TestFilestoreSillyRename: files that a machine has open when they are removed leave nothing behind, in the end.
func TestFilestoreSillyRename(t *testing.T) {
	p := newPair(t, ClientOptions{Version: 3})
	id, rec := newID(), newRecord("1")
	must(t, p.onA.Save(t.Context(), id, rec, 0))
	dir := filepath.Join(p.a.dir, p.name, "n"+id.Hex()[:2], id.Hex())
	data, err := filepath.Glob(filepath.Join(dir, "d-*"))
	if err != nil || len(data) != 1 {
		t.Fatalf("data files %v, %v", data, err)
	}
	f, err := os.Open(data[0])
	must(t, err)
	second := next(rec, "2")
	must(t, p.onA.Save(t.Context(), id, second, rec.Revision)) // removes what is open
	left, _ := filepath.Glob(filepath.Join(dir, ".nfs*"))
	if len(left) != 1 {
		t.Errorf(".nfs files: %v, want one", left)
	}
	p.want("beside a .nfs file", p.on, id, "2")
	must(t, p.on.Save(t.Context(), id, next(second, "3"), second.Revision))
	p.want("beside a .nfs file", p.onA, id, "3")
	must(t, p.on.Delete(t.Context(), id))
	must(t, p.on.Save(t.Context(), id, newRecord("4"), 0))
	p.want("made anew beside a .nfs file", p.onA, id, "4")
	must(t, f.Close())
	eventually(t, func() bool { // the kernel tells of the close later
		left, _ = filepath.Glob(filepath.Join(dir, ".nfs*"))
		return len(left) == 0
	})
}
