// Package testfault causes faults on the servers behind a store, while applications are at work on it, and looks at what
// they see.
//
// A [Proxy] hurts connections. A [Load] is applications at work: each of its sessions knows what was acknowledged to it,
// so that after a fault it can tell a wrong answer from a lost write, a lost session and a logout that is undone.
// [Outages] puts both together: it causes everything that can happen to one server, and demands of every store the
// same:
//
//	testfault.Outages(t, testfault.Target{
//		Server: srv, Addr: srv.Addr, Keeps: true,
//		Open: func(t testing.TB, addr string) driver.Store { return mustOpen(t, "redis://"+addr) },
//	})
//
// Failovers of several servers differ from store to store. Their tests cause them around a Load:
//
//	l := testfault.NewLoad(t, testfault.LoadOptions{Patience: time.Second}, a, b)
//	l.Acked(500)
//	primary.Stop()
//	promote(replica)
//	l.Recovered(500)
//	result := l.Audit(mustOpen(t, url))
package testfault

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// Server is what Outages does to a server; *testserver.Server can.
type Server interface {
	Stop()
	Restart()
	Freeze()
	Thaw()
}

// Target is a store to test.
type Target struct {
	// Open opens a store through an address: Addr, or that of a proxy in front of it. It may close it when the test ends.
	Open func(t testing.TB, addr string) driver.Store
	// Addr is where the server listens.
	Addr string
	// Server is the server. Without one, only Faults are caused.
	Server Server
	// NoProxy leaves out what is done to connections, and has the store connect without a proxy.
	NoProxy bool
	// Keeps says that what was acknowledged survives when the server is killed and restarted. Otherwise sessions that are
	// gone after that are counted and logged; at any other time they are failures.
	Keeps bool
	// Multiplexed says that calls share connections, so that one that is hurt hurts several of them.
	Multiplexed bool
	// Pool is how many connections the store keeps at most, with a goroutine each, once it has needed them. 0: about as many
	// as there are visitors.
	Pool int
	// Faults are others, which this kind of server can have.
	Faults []Fault
}

// Fault is something that goes wrong.
type Fault struct {
	Name string
	// Cause makes it go wrong, until end is called.
	Cause func(t testing.TB) (end func())
	// Load, Create, Write and Delete are what such calls are answered with meanwhile: an error of package driver, nil if
	// they work, or ErrEither. Write is Save of a record that is there, Merge and Touch.
	Load, Create, Write, Delete error
	// Bytes is how large the records are that Create saves. 0: small.
	Bytes int
}

// Down is the fault of a server that does not answer.
var Down = Fault{Load: driver.ErrUnavailable, Create: driver.ErrUnavailable, Write: driver.ErrUnavailable, Delete: driver.ErrUnavailable}

// ErrEither stands for nil or driver.ErrUnavailable in a Fault.
var ErrEither = errors.New("works, or ErrUnavailable")

// Outages causes everything that can happen to a server, one subtest each, while visitors are at work, with deadlines
// that are short or over at once, and some who go away in the middle of a call. In each of them:
//
//   - a call returns by its deadline, give or take what a busy machine takes;
//   - one that the store cannot answer is ErrUnavailable, or what the Fault says; never ErrNotFound or ErrConflict;
//   - nobody is ever shown another's record, half of one, or one that was not written;
//   - what was acknowledged is there, and who has logged out stays out, unless the server forgets when it is killed;
//   - when one connection is hurt, only the calls on it notice;
//   - it works again by itself, and then holds no more goroutines and connections than before; after Close, none.
func Outages(t *testing.T, target Target) {
	for _, o := range outages(target) {
		t.Run(o.name, func(t *testing.T) { target.run(t, o) })
	}
}

// outage is one case of Outages.
type outage struct {
	name    string
	proxied bool
	forgets bool // a server that does not keep what it has forgets it
	run     func(r *run)
}

func outages(target Target) []outage {
	var all []outage
	if target.Server != nil {
		all = append(all,
			outage{name: "killed", forgets: true, run: killed},
			outage{name: "frozen", run: frozen},
			outage{name: "restarted while idle", forgets: true, run: restarted},
		)
	}
	if target.Server != nil && !target.NoProxy {
		all = append(all,
			outage{name: "connections cut while idle", proxied: true, run: cutIdle},
			outage{name: "connections cut during calls", proxied: true, run: cutDuring},
			outage{name: "connections cut in mid-answer", proxied: true, run: cutAnswers},
			outage{name: "one connection cut", proxied: true, run: cutOne},
			outage{name: "silent", proxied: true, run: silent},
			outage{name: "one connection silent", proxied: true, run: silentOne},
			outage{name: "slow", proxied: true, run: slow},
			outage{name: "connections refused", proxied: true, run: refused},
		)
	}
	for _, f := range target.Faults {
		all = append(all, outage{name: f.Name, proxied: !target.NoProxy, run: func(r *run) { r.fault(f) }})
	}
	return all
}

// run is one outage under way.
type run struct {
	testing.TB
	Target
	proxy *Proxy // nil if the outage needs none
	s     driver.Store
	l     *Load
	known *session      // of the test's own
	rec   driver.Record // its record, as last saved
	gone  Result        // before the server was restarted
}

const (
	// patience is the deadline of visitors who are not in a hurry. It is well above what a call takes on a busy machine.
	patience = 20 * time.Second
	// probePatience is the deadline of calls that may have to wait for it to be over.
	probePatience = 300 * time.Millisecond
	workers       = 8
)

// run causes an outage.
func (target Target) run(t testing.TB, o outage) {
	t.Helper()
	r := &run{TB: t, Target: target}
	addr := target.Addr
	if o.proxied {
		r.proxy = NewProxy(t, addr, uint64(len(o.name)))
		addr = r.proxy.Addr
	}
	leaks := watchLeaks(t, addr)
	r.s = target.Open(t, addr)
	r.known = newSession()
	r.rec = r.known.first()
	if err := r.s.Save(t.Context(), r.known.id, r.rec, 0); err != nil {
		t.Fatalf("before the fault: Save = %v", err)
	}
	r.l = NewLoad(t, LoadOptions{Sessions: testserver.Scale(60, 400), Workers: workers, Seed: uint64(len(o.name))}, r.s)
	r.l.Visits(testserver.Scale(100, 5000))
	r.calm()
	resume := r.l.Pause()
	before := leaks.now()
	resume()
	r.l.SetPatience(0)
	if o.proxied && r.proxy.Stats().Down == 0 {
		t.Errorf("nothing passes the proxy: Open has to use the address that it is given")
	}

	o.run(r)

	r.calm()
	r.l.Recovered(testserver.Scale(100, 2000))
	resume = r.l.Pause()
	leaks.wantNoMore(before, max(workers, r.Pool-before.connections))
	resume()
	r.judge(r.l.Audit(r.s), o.forgets && !target.Keeps)
	if err := r.s.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	leaks.wantNone()
}

// calm waits until every visitor has time.
func (r *run) calm() {
	r.Helper()
	r.l.SetPatience(patience)
	r.l.Rounds(2)
}

// judge compares the result with what every store must do.
func (r *run) judge(result Result, forgot bool) {
	r.Helper()
	r.Logf("%v", result)
	for _, wrong := range result.Wrongs {
		r.Errorf("wrong answer: %s", wrong)
	}
	if result.Wrong > len(result.Wrongs) {
		r.Errorf("and %d more wrong answers", result.Wrong-len(result.Wrongs))
	}
	if result.Late > 0 {
		r.Errorf("%d calls returned more than %v after their deadlines", result.Late, slack)
	}
	if result.Revived > 0 {
		r.Errorf("%d sessions that were ended are back", result.Revived)
	}
	if forgot {
		r.Logf("the server forgets when it is killed: %d sessions are gone", result.Gone)
		result = r.gone // what was so before it was restarted
	}
	if result.Gone > 0 {
		r.Errorf("%d sessions are not found, and nobody has ended them: silent logouts", result.Gone)
	}
	if result.Lost+result.Undone > 0 {
		r.Errorf("%d acknowledged writes are lost, and %d states that were read", result.Lost, result.Undone)
	}
	if result.Overtaken > 0 {
		r.Errorf("%d writes of what was just loaded were conflicts, and nobody else wrote", result.Overtaken)
	}
}

// restart restarts the server, which may forget what it has.
func (r *run) restart() {
	r.gone = r.l.Result()
	r.Server.Restart()
}

// call is a call on the store.
type call struct {
	op   string
	want error
	f    func(context.Context) error
	or   error // with ErrEither, what it may be answered with too
}

// probe makes every kind of call and compares what comes back with what f says, and the time with the deadline.
func (r *run) probe(f Fault) {
	r.Helper()
	x, absent := r.known, newSession()
	large := absent.first()
	if f.Bytes > 0 {
		value := make([]byte, f.Bytes)
		_, _ = rand.Read(value) // never fails; a database compresses zeros
		large.Fields = large.Fields.With(driver.Change{Name: "large", Value: value})
	}
	wantAbsent := f.Load
	if wantAbsent == nil {
		wantAbsent = driver.ErrNotFound
	}
	r.all([]call{
		{op: "Load", want: f.Load, f: func(ctx context.Context) error {
			rec, err := r.s.Load(ctx, x.id)
			if err == nil {
				if _, _, wrong := x.read(rec); wrong != "" {
					r.Errorf("wrong answer: %s", wrong)
				}
			}
			return err
		}},
		{op: "Load of what is not there", want: wantAbsent, or: driver.ErrNotFound,
			f: func(ctx context.Context) error { _, err := r.s.Load(ctx, newSession().id); return err }},
		{op: "List", want: f.Load, f: func(ctx context.Context) error {
			if l, ok := r.s.(driver.Lister); ok {
				for _, err := range l.List(ctx) {
					if err != nil {
						return err
					}
				}
				return nil
			}
			return f.Load
		}},
		{op: "create", want: f.Create, f: func(ctx context.Context) error { return r.s.Save(ctx, absent.id, large, 0) }},
		{op: "Delete", want: f.Delete, f: func(ctx context.Context) error { return r.s.Delete(ctx, newSession().id) }},
	})
	if f.Write != nil && f.Write != ErrEither {
		r.all(r.writes(f))
		return
	}
	for i := range r.writes(f) { // each from what the one before it has left
		loaded := false
		r.try(call{op: "Load", want: f.Load, f: func(ctx context.Context) error {
			rec, err := r.s.Load(ctx, x.id)
			if err == nil {
				r.rec, loaded = rec, true
			}
			return err
		}})
		if loaded {
			r.try(r.writes(f)[i])
		}
	}
}

// writes returns every kind of call that replaces the record r.rec.
func (r *run) writes(f Fault) []call {
	x, rec := r.known, r.rec
	next := x.next(rec)
	calls := []call{{op: "Save", want: f.Write, f: func(ctx context.Context) error { return r.s.Save(ctx, x.id, next, rec.Revision) }}}
	if m, ok := r.s.(driver.Merger); ok {
		changes := x.merge()
		next := later(rec)
		next.Fields = rec.Fields.With(changes...)
		calls = append(calls, call{op: "Merge", want: f.Write, f: func(ctx context.Context) error {
			_, err := m.Merge(ctx, x.id, rec, next, changes)
			return err
		}})
	}
	if t, ok := r.s.(driver.Toucher); ok {
		calls = append(calls, call{op: "Touch", want: f.Write, f: func(ctx context.Context) error { return t.Touch(ctx, x.id, later(rec), rec.Revision) }})
	}
	return calls
}

// all makes calls at once.
func (r *run) all(calls []call) {
	r.Helper()
	var wg sync.WaitGroup
	for _, c := range calls {
		wg.Go(func() { r.try(c) })
	}
	wg.Wait()
}

// try makes one call.
func (r *run) try(c call) {
	r.Helper()
	d := patience
	if c.want == driver.ErrUnavailable {
		d = probePatience
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.f(ctx) }() // a store that does not heed the deadline must not hold up the test
	var err error
	select {
	case err = <-done:
	case <-time.After(d + slack):
		r.Errorf("%s has not returned %v after its deadline", c.op, slack)
		return
	}
	ok := errors.Is(err, c.want)
	switch {
	case c.want == ErrEither:
		ok = err == nil || errors.Is(err, driver.ErrUnavailable) || c.or != nil && errors.Is(err, c.or)
	case c.want == driver.ErrUnavailable && ctx.Err() != nil:
		ok = ok || errors.Is(err, ctx.Err())
	}
	if !ok {
		r.Errorf("%s = %v, want %v", c.op, err, c.want)
	}
	for _, not := range []error{driver.ErrNotFound, driver.ErrConflict} {
		if c.want != not && (c.want != ErrEither || c.or != not) && errors.Is(err, not) {
			r.Errorf("%s = %v, which the store cannot know", c.op, err)
		}
	}
}

// up is what a store says that works.
var up = Fault{}

func (r *run) fault(f Fault) {
	r.Helper()
	ended := false
	end := f.Cause(r)
	defer func() {
		if !ended {
			end()
		}
	}()
	r.probe(f)
	r.l.Visits(testserver.Scale(100, 1000))
	r.probe(f)
	end()
	ended = true
}
