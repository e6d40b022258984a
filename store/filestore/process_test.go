//go:build unix

package filestore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
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

// The tests in this file run worker processes: this test binary, with the directory in workerEnv. A worker reads
// lines "ID name times" and adds 1 to two fields of that record, name and "total", so many times, and prints a line
// "ok" after each, and "gone" if the record is not there or of another life. At a line "sweep" it calls Sweep and prints
// "swept N". With idleEnv set it does not sweep by itself.
const workerEnv = "HOLDFAST_FILESTORE_WORKER"

// networkEnv holds the worker's Config.Network.
const networkEnv = "HOLDFAST_FILESTORE_NETWORK"

const idleEnv = "HOLDFAST_FILESTORE_IDLE"

func runWorker(dir string) error {
	every := 5 * time.Millisecond
	if os.Getenv(idleEnv) != "" {
		every = -1
	}
	s, err := filestore.Open(context.Background(), dir, filestore.Config{SweepEvery: every, Network: filestore.Network(os.Getenv(networkEnv))})
	if err != nil {
		return err
	}
	defer s.Close()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "sweep" {
			removed, err := s.Sweep(context.Background(), nil)
			if err != nil {
				return err
			}
			fmt.Println("swept", removed)
			continue
		}
		var hex, name string
		var times int
		if _, err := fmt.Sscan(lines.Text(), &hex, &name, &times); err != nil {
			return err
		}
		id, err := driver.ParseID(hex)
		if err != nil {
			return err
		}
		if err := addTimes(s, id, name, times); err != nil {
			return err
		}
	}
	return nil
}

func addTimes(s driver.Store, id driver.ID, name string, times int) error {
	var life driver.Record
	for i := range times {
		rec, err := add(context.Background(), s, id, name)
		if i == 0 {
			life = rec
		}
		if errors.Is(err, driver.ErrNotFound) || err == nil && !rec.SameLife(life) {
			fmt.Println("gone")
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Println("ok")
	}
	return nil
}

// add adds 1 to the fields name and total, as the Manager would: load, save, and again on conflict.
func add(ctx context.Context, s driver.Store, id driver.ID, name string) (driver.Record, error) {
	for try := 0; ; try++ {
		rec, err := s.Load(ctx, id)
		if err != nil {
			return rec, err
		}
		prev := rec.Revision
		rec.Revision = driver.NewRevision(prev)
		for _, field := range []string{name, "total"} {
			value := strconv.Itoa(count(rec, field) + 1)
			rec.Fields = rec.Fields.With(driver.Change{Name: field, Value: []byte(value)})
		}
		if err := s.Save(ctx, id, rec, prev); !errors.Is(err, driver.ErrConflict) {
			return rec, err
		}
		if try > 0 {
			time.Sleep(rand.N(time.Duration(min(try, 20)) * 100 * time.Microsecond))
		}
	}
}

func count(rec driver.Record, name string) int {
	value, _ := rec.Fields.Get(name)
	n, _ := strconv.Atoi(string(value))
	return n
}

// workerProcess is a worker that a test started.
type workerProcess struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	acked int // lines "ok" that were read
}

// event is a line of a worker's, or its end.
type event struct {
	from *workerProcess
	line string // "" at the end
}

type workers struct {
	t      testing.TB
	dir    string
	events chan event
	all    []*workerProcess
	read   sync.WaitGroup
}

func newWorkers(t testing.TB, dir string) *workers {
	ws := &workers{t: t, dir: dir, events: make(chan event, 1024)}
	t.Cleanup(func() {
		for _, w := range ws.all {
			_ = w.cmd.Process.Kill() // it may have ended
		}
		go func() {
			ws.read.Wait()
			close(ws.events)
		}()
		for range ws.events {
		}
	})
	return ws
}

func (ws *workers) start() *workerProcess {
	ws.t.Helper()
	w := &workerProcess{name: fmt.Sprint("w", len(ws.all)), cmd: exec.Command(os.Args[0])}
	w.cmd.Env = append(os.Environ(), workerEnv+"="+ws.dir)
	w.cmd.Stderr = os.Stderr
	stdin, err := w.cmd.StdinPipe()
	if err != nil {
		ws.t.Fatal(err)
	}
	w.stdin = stdin
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		ws.t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		ws.t.Fatal(err)
	}
	ws.all = append(ws.all, w)
	ws.read.Go(func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			ws.events <- event{w, lines.Text()}
		}
		_ = w.cmd.Wait() // a worker that failed has said why
		ws.events <- event{w, ""}
	})
	return w
}

func (ws *workers) order(w *workerProcess, id driver.ID, times int) {
	ws.t.Helper()
	if _, err := fmt.Fprintln(w.stdin, id.Hex(), w.name, times); err != nil {
		ws.t.Fatal(err)
	}
}

// next returns the next event.
func (ws *workers) next() event {
	ws.t.Helper()
	select {
	case e := <-ws.events:
		if e.line == "ok" {
			e.from.acked++
		}
		return e
	case <-time.After(time.Minute):
		ws.t.Fatal("no worker says anything for a minute")
		panic("unreachable")
	}
}

func (ws *workers) signal(w *workerProcess, s syscall.Signal) {
	ws.t.Helper()
	if err := w.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		ws.t.Fatal(err)
	}
}

func TestProcesses(t *testing.T) {
	dir, id := fastDir(t), mustID(t)
	s := mustOpen(t, dir, filestore.Config{SweepEvery: -1})
	mustSave(t, s, id, newRecord("", time.Hour), 0)
	const processes, times = 4, 500
	ws := newWorkers(t, dir)
	for range processes {
		w := ws.start()
		ws.order(w, id, times)
		if err := w.stdin.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for running := processes; running > 0; {
		if e := ws.next(); e.line == "" {
			running--
		}
	}
	rec, err := s.Load(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if got := count(rec, "total"); got != processes*times {
		t.Errorf("total = %d after %d processes added 1 %d times", got, processes, times)
	}
}

// TestProcessesKilledAndStopped kills and stops processes while they all add to one record: whatever was
// acknowledged is in it, and nothing else but at most the one addition that each killed process was about to
// acknowledge. Those left over can always go on.
func TestProcessesKilledAndStopped(t *testing.T) {
	for network, wantKills := range map[filestore.Network]int{filestore.Refuse: 60, filestore.NFS: testserver.Scale(30, 300)} {
		t.Run("network="+string(network), func(t *testing.T) { testProcessesKilledAndStopped(t, network, wantKills) })
	}
}

func testProcessesKilledAndStopped(t *testing.T, network filestore.Network, wantKills int) {
	t.Setenv(networkEnv, string(network))
	dir, id := fastDir(t), mustID(t)
	s := mustOpen(t, dir, filestore.Config{Network: network, SweepEvery: -1})
	mustSave(t, s, id, newRecord("", time.Hour), 0)
	const forever = 1 << 30
	ws := newWorkers(t, dir)
	var running, stopped []*workerProcess
	start := func() {
		w := ws.start()
		ws.order(w, id, forever)
		running = append(running, w)
	}
	take := func(from *[]*workerProcess) *workerProcess {
		i := rand.IntN(len(*from))
		w := (*from)[i]
		*from = append((*from)[:i], (*from)[i+1:]...)
		return w
	}
	for range 4 {
		start()
	}
	kills, stops, ended := 0, 0, 0
	for acked := 0; kills < wantKills; {
		e := ws.next()
		if e.line == "" {
			ended++
		}
		if e.line != "ok" {
			continue
		}
		acked++
		if acked%7 == 0 {
			if len(stopped) == 2 {
				w := take(&stopped)
				ws.signal(w, syscall.SIGCONT)
				running = append(running, w)
			} else {
				w := take(&running)
				ws.signal(w, syscall.SIGSTOP)
				stopped = append(stopped, w)
				stops++
			}
		}
		if acked%31 == 0 {
			from := &running
			if kills%3 == 0 && len(stopped) > 0 {
				from = &stopped
			}
			ws.signal(take(from), syscall.SIGKILL)
			kills++
			start()
		}
	}
	for _, w := range append(running, stopped...) {
		ws.signal(w, syscall.SIGKILL)
	}
	for ended < len(ws.all) {
		if e := ws.next(); e.line == "" {
			ended++
		}
	}
	if _, err := add(t.Context(), s, id, "last"); err != nil { // finishes what the last one may have begun
		t.Fatal(err)
	}
	rec, err := s.Load(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	sum := 1
	for _, w := range ws.all {
		n := count(rec, w.name)
		if n != w.acked && n != w.acked+1 {
			t.Errorf("%s: %d additions in the record, %d acknowledged", w.name, n, w.acked)
		}
		sum += n
	}
	if total := count(rec, "total"); total != sum {
		t.Errorf("total = %d, sum of all processes %d", total, sum)
	}
	t.Logf("%d additions, %d processes killed, %d stopped for a while", sum, kills, stops)
}

// TestProcessStoppedDuringDelete: attack 15, with real processes. A writer is stopped at a random moment, its
// record deleted, in every other round made anew, and the writer woken.
func TestProcessStoppedDuringDelete(t *testing.T) {
	for _, network := range []filestore.Network{filestore.Refuse, filestore.NFS} {
		t.Run("network="+string(network), func(t *testing.T) { testProcessStoppedDuringDelete(t, network) })
	}
}

func testProcessStoppedDuringDelete(t *testing.T, network filestore.Network) {
	t.Setenv(networkEnv, string(network))
	dir := fastDir(t)
	s := mustOpen(t, dir, filestore.Config{Network: network, SweepEvery: -1})
	ws := newWorkers(t, dir)
	w := ws.start()
	for round := range 200 {
		id := mustID(t)
		mustSave(t, s, id, newRecord("", time.Hour), 0)
		ws.order(w, id, 1<<30)
		for wait := 1 + rand.IntN(5); wait > 0; {
			if e := ws.next(); e.line == "ok" {
				wait--
			} else {
				t.Fatalf("round %d: worker says %q", round, e.line)
			}
		}
		ws.signal(w, syscall.SIGSTOP)
		if err := s.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		anew := newRecord("", time.Hour)
		anew.User = "another life"
		if round%2 == 1 {
			mustSave(t, s, id, anew, 0)
		}
		ws.signal(w, syscall.SIGCONT)
		for e := ws.next(); e.line != "gone"; e = ws.next() {
			if e.line == "" {
				t.Fatalf("round %d: worker ended", round)
			}
		}
		rec, err := s.Load(t.Context(), id)
		switch {
		case round%2 == 0:
			wantErr(t, "Load after Delete", err, driver.ErrNotFound)
		case err != nil || !rec.SameLife(anew):
			t.Fatalf("round %d: %v, want the record made anew", round, err)
		}
	}
}

// worker is what the processes run instead of tests.
func worker(dir string) int {
	if err := runWorker(dir); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", strings.TrimSpace(err.Error()))
		return 1
	}
	return 0
}
