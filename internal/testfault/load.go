package testfault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// slack is how long after its deadline a call may return: what fails here is a call that does not heed it, and not a machine
// on which other tests run.
var slack = 30 * time.Second

// waitTimeout is how long a load may take to get somewhere.
var waitTimeout = 90 * time.Second

// LoadOptions say what a [Load] does.
type LoadOptions struct {
	// Sessions are how many there are at a time. 0: 100.
	Sessions int
	// Workers visit them at once. 0: 8.
	Workers int
	// Pause is how long a worker rests after each visit. 0: 2 ms: client and servers share a machine.
	Pause time.Duration
	// Patience is the deadline of each visit. 0: visitors are in a hurry, with deadlines between nothing and half a second,
	// and one in eight goes away at some moment.
	Patience time.Duration
	// Seed determines who does what.
	Seed uint64
	// Logouts is one in how many visits ends its session. 0: 30.
	Logouts int
}

// Load is applications at work on many sessions, each of which knows what was acknowledged to it. It runs from NewLoad to
// Stop. A visit loads a session, checks what it is shown, and writes in one way or another, or logs out; or it
// tries, late, to write to a session that has ended.
type Load struct {
	t       testing.TB
	o       LoadOptions
	stores  []driver.Store
	stop    chan struct{}
	stopped sync.Once
	wg      sync.WaitGroup
	pause   sync.RWMutex // a visit holds it for reading

	mu sync.Mutex

	// mu guards the fields below.
	changed  chan struct{} // closed and replaced at each visit
	sessions []*session
	retired  []*session // which nobody visits any more
	visits   int
	inARow   int // visits without a refusal
	perWork  []int
	lastOK   time.Time
	result   Result
}

// Result is what came of a load.
type Result struct {
	Visits int // made
	Acked  int // writes that were acknowledged: creates, saves, merges, touches
	Ended  int // logouts that were acknowledged
	Unsure int // writes and logouts that were answered with an error: they may or may not have happened

	// Wrong are answers that no store may ever give: another's record, half of one, a state that nobody wrote or that was
	// undone before, a create that overwrote, an error outside the contract. The first few are in Wrongs.
	Wrong  int
	Wrongs []string
	// Late are calls that returned long after their deadline. Latest is how long after it the latest of all returned.
	Late   int
	Latest time.Duration
	// Lost are writes that were acknowledged and are not there.
	Lost int
	// Undone are states that were not acknowledged, but read, and are not there any more; logouts too.
	Undone int
	// Gone are sessions that nobody has ended and that are not found: silent logouts.
	Gone int
	// Revived are sessions whose logout was acknowledged and that are found, or can be written to, again.
	Revived int
	// Overtaken are writes of what was just loaded that found another state, though nobody else wrote.
	Overtaken int
	// Refused are visits that got an error, by its kind: "unavailable", "deadline", "read-only".
	Refused map[string]int
	// Stall is the longest time in which no visit succeeded.
	Stall time.Duration
}

func (r Result) String() string {
	var refused []string
	for kind, n := range r.Refused {
		refused = append(refused, fmt.Sprintf("%d %s", n, kind))
	}
	slices.Sort(refused)
	if len(refused) == 0 {
		refused = []string{"none"}
	}
	return fmt.Sprintf("%d visits, %d writes acknowledged, of which lost: %d; %d logouts, of which revived: %d; outcome unknown: %d; sessions gone: %d; "+
		"read and undone: %d; overtaken: %d; wrong answers: %d; late: %d, latest by %v; refused: %s; longest stall %v",
		r.Visits, r.Acked, r.Lost, r.Ended, r.Revived, r.Unsure, r.Gone, r.Undone, r.Overtaken, r.Wrong, r.Late, r.Latest.Round(time.Millisecond), strings.Join(refused, ", "),
		r.Stall.Round(time.Millisecond))
}

// NewLoad starts visitors of sessions in stores, which are clients of the same records, such as two application servers. It
// returns when every session was created. The load ends with the test, or by Stop.
func NewLoad(t testing.TB, o LoadOptions, stores ...driver.Store) *Load {
	t.Helper()
	if o.Sessions == 0 {
		o.Sessions = 100
	}
	if o.Workers == 0 {
		o.Workers = 8
	}
	if o.Pause == 0 {
		o.Pause = 2 * time.Millisecond
	}
	if o.Logouts == 0 {
		o.Logouts = 30
	}
	l := &Load{t: t, o: o, stores: stores, stop: make(chan struct{}), changed: make(chan struct{}), perWork: make([]int, o.Workers),
		lastOK: time.Now(), result: Result{Refused: make(map[string]int)}}
	for i := range o.Sessions {
		x := newSession()
		rec := x.first()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		err := stores[i%len(stores)].Save(ctx, x.id, rec, 0)
		cancel()
		if err != nil {
			t.Fatalf("create a session: %v", err)
		}
		x.saw(1, true)
		x.phase, x.lastRead = live, rec
		l.sessions = append(l.sessions, x)
		l.result.Acked++
	}
	for w := range o.Workers {
		l.wg.Go(func() { l.work(w) })
	}
	t.Cleanup(l.Stop)
	return l
}

// Stop ends the visits and waits for those that are under way.
func (l *Load) Stop() {
	l.stopped.Do(func() { close(l.stop) })
	l.wg.Wait()
}

// Pause waits for the visits that are under way and lets nobody begin another, until resume is called.
func (l *Load) Pause() (resume func()) {
	l.pause.Lock()
	return l.pause.Unlock
}

// SetPatience changes how long visitors wait; 0: not long.
func (l *Load) SetPatience(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.o.Patience = d
}

// Result returns what came of the load so far.
func (l *Load) Result() Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.snapshot()
}

func (l *Load) snapshot() Result {
	r := l.result
	r.Visits = l.visits
	r.Refused = make(map[string]int)
	for k, n := range l.result.Refused {
		r.Refused[k] = n
	}
	r.Wrongs = slices.Clone(r.Wrongs)
	return r
}

// refusals returns how many visits were refused so far.
func (l *Load) refusals() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused()
}

func (l *Load) refused() (n int) {
	for _, k := range l.result.Refused {
		n += k
	}
	return n
}

// Visits waits until n more visits have ended, however.
func (l *Load) Visits(n int) {
	l.t.Helper()
	l.mu.Lock()
	until := l.visits + n
	l.mu.Unlock()
	l.wait(fmt.Sprintf("%d visits end", n), func() bool { return l.visits >= until })
}

// Rounds waits until each worker has ended n more visits.
func (l *Load) Rounds(n int) {
	l.t.Helper()
	l.mu.Lock()
	start := slices.Clone(l.perWork)
	l.mu.Unlock()
	l.wait(fmt.Sprintf("%d visits of each worker end", n), func() bool {
		for w, before := range start {
			if l.perWork[w] < before+n {
				return false
			}
		}
		return true
	})
}

// Acked waits until n more writes are acknowledged.
func (l *Load) Acked(n int) {
	l.t.Helper()
	l.mu.Lock()
	until := l.result.Acked + n
	l.mu.Unlock()
	l.wait(fmt.Sprintf("%d writes are acknowledged", n), func() bool { return l.result.Acked >= until })
}

// Recovered waits until n visits have succeeded one after the other. Visitors must not be in a hurry.
func (l *Load) Recovered(n int) {
	l.t.Helper()
	l.mu.Lock()
	l.inARow = 0
	l.mu.Unlock()
	l.wait(fmt.Sprintf("%d visits succeed one after the other", n), func() bool { return l.inARow >= n })
}

// wait waits until ok, which is called with mu held, after each visit.
func (l *Load) wait(what string, ok func() bool) {
	l.t.Helper()
	deadline := time.After(waitTimeout)
	for {
		l.mu.Lock()
		done, changed, result := ok(), l.changed, l.snapshot()
		l.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			l.t.Fatalf("not after %v: %s; %v", waitTimeout, what, result)
		}
	}
}

func (l *Load) work(w int) {
	r := rand.New(rand.NewPCG(l.o.Seed, uint64(w)))
	tick := time.NewTicker(l.o.Pause)
	defer tick.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		l.pause.RLock()
		l.visit(w, r)
		l.pause.RUnlock()
	}
}

// visit makes one visit to a session that nobody else visits.
func (l *Load) visit(worker int, r *rand.Rand) {
	i := r.IntN(l.o.Sessions)
	l.mu.Lock()
	x, patience := l.sessions[i], l.o.Patience
	l.mu.Unlock()
	if !x.mu.TryLock() {
		return
	}
	v := &visit{l: l, x: x, s: l.stores[r.IntN(len(l.stores))], r: r}
	v.run(patience)
	over := x.phase == doubtful || x.phase == forgotten || x.phase == ended && r.IntN(4) == 0
	x.mu.Unlock()

	l.mu.Lock()
	defer l.mu.Unlock()
	if over && l.sessions[i] == x {
		l.retired = append(l.retired, x)
		l.sessions[i] = newSession()
	}
	l.visits++
	l.perWork[worker]++
	if v.refused {
		l.inARow = 0
	} else {
		l.inARow++
		l.succeeded()
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// succeeded notes that the store answers. l.mu is held.
func (l *Load) succeeded() {
	t := time.Now()
	l.result.Stall = max(l.result.Stall, t.Sub(l.lastOK))
	l.lastOK = t
}

// wrong notes an answer that no store may give.
func (l *Load) wrong(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.result.Wrong++; len(l.result.Wrongs) < 8 {
		l.result.Wrongs = append(l.result.Wrongs, fmt.Sprintf(format, args...))
	}
}

func (l *Load) count(f func(r *Result)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.result)
}

// Audit stops the load, looks at every session that there ever was, and returns the result. The store is best one that
// was opened anew.
func (l *Load) Audit(s driver.Store) Result {
	l.t.Helper()
	l.Stop()
	l.mu.Lock()
	all := slices.Concat(l.sessions, l.retired)
	l.mu.Unlock()
	var wg sync.WaitGroup
	for part := range slices.Chunk(all, len(all)/4+1) {
		wg.Go(func() {
			for _, x := range part {
				x.mu.Lock()
				v := &visit{l: l, x: x, s: s, ctx: context.Background()}
				for try := 0; ; try++ {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					v.ctx, v.refused = ctx, false
					v.load()
					cancel()
					if !v.refused {
						break
					}
					if try == 2 {
						l.wrong("audit of session %s: the store does not answer: %v", x.id, v.err)
						break
					}
				}
				x.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return l.Result()
}

// kindOf names an error that a store may answer with when it cannot do what it is asked to; "": it may not.
func kindOf(ctx context.Context, err error) string {
	switch {
	case errors.Is(err, driver.ErrNotFound), errors.Is(err, driver.ErrConflict):
		return ""
	case errors.Is(err, driver.ErrReadOnly):
		return "read-only"
	case errors.Is(err, driver.ErrUnavailable) && ctx.Err() != nil:
		return "deadline"
	case errors.Is(err, driver.ErrUnavailable):
		return "unavailable"
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return "deadline"
	}
	return ""
}
