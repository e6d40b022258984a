package browsertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// stage holds requests on their way, so that a test lets them on in an order of its own.
type stage struct {
	over chan struct{} // closed at the end of the test: nothing is held any more

	mu sync.Mutex

	// mu guards the field below
	flights map[string]*flight
}

// flight returns the request with a name, nil if it is not to be held.
func (s *stage) flight(name string) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flights[name]
}

// flight is a request that is held: when it arrives, after the calls to the store in holds, and when its answer is
// ready.
type flight struct {
	name    string
	holds   []int // numbers of store calls whose answers are held
	over    chan struct{}
	arrived chan string // where it is held
	release chan struct{}

	// What the request's goroutine knows; to be read while it is held, or after it.
	calls           int
	cookie          string // as it was sent
	setCookie       []string
	loaded, readyAt int // the move that brought it there, 0: not yet
	answer          answer
	answered        bool
}

type flightKey struct{}

// hold waits until the test lets the request on.
func (f *flight) hold(where string) {
	select {
	case f.arrived <- where:
	case <-f.over:
		return
	}
	select {
	case <-f.release:
	case <-f.over:
	}
}

// hold returns s with the answers held that the flights in the contexts say. It is a Merger if s is one.
func hold(s driver.Store) driver.Store {
	h := heldStore{s}
	if m, ok := s.(driver.Merger); ok {
		return heldMerger{h, m}
	}
	return h
}

type heldStore struct{ driver.Store }

type heldMerger struct {
	heldStore
	merger driver.Merger
}

func holdAnswer(ctx context.Context) {
	f, ok := ctx.Value(flightKey{}).(*flight)
	if !ok {
		return
	}
	if f.calls++; slices.Contains(f.holds, f.calls) {
		f.hold("stored")
	}
}

func (s heldStore) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	defer holdAnswer(ctx)
	return s.Store.Load(ctx, id)
}

func (s heldStore) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	defer holdAnswer(ctx)
	return s.Store.Save(ctx, id, rec, prev)
}

func (s heldStore) Delete(ctx context.Context, id driver.ID) error {
	defer holdAnswer(ctx)
	return s.Store.Delete(ctx, id)
}

func (s heldMerger) Merge(ctx context.Context, id driver.ID, base, next driver.Record, changes []driver.Change) (driver.Record, error) {
	defer holdAnswer(ctx)
	return s.merger.Merge(ctx, id, base, next, changes)
}

// play is one order of answers, from a page that sends requests until all are answered.
type play struct {
	t       testing.TB
	b       *tab
	f       *fleet
	flights map[string]*flight
	names   []string // in the order of sending
	moves   []string
}

// newPlay begins with an empty stage.
func newPlay(t testing.TB, b *tab, f *fleet) *play {
	p := &play{t: t, b: b, f: f, flights: make(map[string]*flight)}
	f.stage.mu.Lock()
	f.stage.flights = make(map[string]*flight)
	f.stage.mu.Unlock()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("moves: %s", strings.Join(p.moves, ", "))
		}
	})
	return p
}

// Which answers of the store are held. Those that come while the Manager has a lock that another request waits for
// are not: the mark that Login leaves in place of the old session.
var (
	holdLoad  = []int{1}
	holdLogin = []int{1, 2, 4} // the session loaded, the new one saved, and listed for its user
)

// send sends requests from the page and waits until the server has them all.
func (p *play) send(requests ...request) {
	p.t.Helper()
	p.f.stage.mu.Lock()
	for _, q := range requests {
		f := &flight{
			name: q.Name, holds: holdLoad, over: p.f.stage.over,
			arrived: make(chan string), release: make(chan struct{}),
		}
		if strings.HasPrefix(q.Path, "/login") {
			f.holds = holdLogin
		}
		p.f.stage.flights[q.Name], p.flights[q.Name] = f, f
		p.names = append(p.names, q.Name)
	}
	p.f.stage.mu.Unlock()
	p.b.send(requests...)
	for _, q := range requests {
		p.wait(p.flights[q.Name], "sent")
	}
}

// step lets a request on to where it is held next, or to its answer in the page.
func (p *play) step(name string) {
	p.t.Helper()
	f := p.flights[name]
	if f.answered {
		return
	}
	select {
	case f.release <- struct{}{}:
	case <-time.After(patience):
		p.t.Fatalf("request %s is not held", name)
	}
	p.wait(f, "")
}

// wait waits until a request is held, or answered in the page.
func (p *play) wait(f *flight, what string) {
	p.t.Helper()
	answers := p.b.answers
	if what == "sent" {
		answers = nil
	}
	var where string
	select {
	case where = <-f.arrived:
	case f.answer = <-answers:
		if f.answer.Error != "" || f.answer.Name != f.name {
			p.t.Fatalf("page reports %+v, want the answer to %s", f.answer, f.name)
		}
		where, f.answered = "answered", true
	case <-time.After(patience):
		p.t.Fatalf("request %s does not go on", f.name)
	}
	p.moves = append(p.moves, f.name+" "+where)
	switch now := len(p.moves); where {
	case "stored":
		if f.loaded == 0 {
			f.loaded = now
		}
	case "ready":
		if f.loaded == 0 {
			f.loaded = now
		}
		f.readyAt = now
	}
}

// load lets requests on until they have loaded their sessions.
func (p *play) load(names ...string) {
	p.t.Helper()
	for _, name := range names {
		for p.flights[name].loaded == 0 {
			p.step(name)
		}
	}
}

// ready lets requests on until all they do is stored and only their answers are held.
func (p *play) ready(names ...string) {
	p.t.Helper()
	for _, name := range names {
		for p.flights[name].readyAt == 0 {
			p.step(name)
		}
	}
}

// finish lets requests on, one after the other, until the page has their answers.
func (p *play) finish(names ...string) {
	p.t.Helper()
	for _, name := range names {
		for !p.flights[name].answered {
			p.step(name)
		}
	}
}

// open returns the requests that are not answered yet.
func (p *play) open() []string {
	var names []string
	for _, name := range p.names {
		if !p.flights[name].answered {
			names = append(names, name)
		}
	}
	return names
}

// random lets all requests on in a random order. The steps of first come within a part of the time, long or short, so
// that it overtakes anything or is overtaken by anything.
func (p *play) random(r *rand.Rand, first string) {
	p.t.Helper()
	type move struct {
		at   float64
		name string
	}
	var moves []move
	for _, name := range p.names {
		from, to := 0.0, 1.0
		if name == first {
			from, to = r.Float64(), r.Float64()
			from, to = min(from, to), max(from, to)
		}
		for range len(p.flights[name].holds) + 2 {
			moves = append(moves, move{from + r.Float64()*(to-from), name})
		}
	}
	slices.SortFunc(moves, func(a, b move) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return strings.Compare(a.name, b.name)
	})
	for _, m := range moves {
		p.step(m.name)
	}
	p.finish(p.names...)
}

func (p *play) status(name string) int { return p.flights[name].answer.Status }

func (p *play) describe(name string) string {
	f := p.flights[name]
	return fmt.Sprintf("%s (loaded at move %d, stored at %d): %d %s", name, f.loaded, f.readyAt, f.answer.Status, strings.TrimSpace(f.answer.Body))
}
