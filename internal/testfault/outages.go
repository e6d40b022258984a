package testfault

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

func killed(r *run) {
	r.Server.Stop()
	r.probe(Down)
	r.l.Visits(testserver.Scale(200, 5000))
	r.restart()
}

func frozen(r *run) {
	r.Server.Freeze()
	thawed := false
	defer func() {
		if !thawed {
			r.Server.Thaw()
		}
	}()
	r.probe(Down)
	r.l.Visits(testserver.Scale(100, 1000))
	r.Server.Thaw()
	thawed = true
	r.l.Visits(testserver.Scale(200, 2000)) // among answers to those who have gone
}

// restarted: the first call after it finds a server that knows nothing of its connection, and works.
func restarted(r *run) {
	resume := r.l.Pause()
	defer resume()
	for range 2 {
		r.restart()
		r.first()
	}
}

// cutIdle: the same without a restart, as a firewall or a load balancer does.
func cutIdle(r *run) {
	resume := r.l.Pause()
	defer resume()
	for i := range 6 {
		r.proxy.Cut()
		r.idle()
		if i%2 == 0 {
			r.first()
		} else {
			r.probe(up)
		}
	}
}

// first makes a write that must succeed.
func (r *run) first() {
	r.Helper()
	x := newSession()
	r.try(call{op: "the first call after it, a create", f: func(ctx context.Context) error { return r.s.Save(ctx, x.id, x.first(), 0) }})
	r.try(call{op: "Load", f: func(ctx context.Context) error { _, err := r.s.Load(ctx, x.id); return err }})
}

// idle is a moment in which nothing is asked of the store.
func (r *run) idle() { <-time.After(100 * time.Millisecond) }

// cutDuring cuts all connections, again and again: only calls that were under way notice, those after them do not.
func cutDuring(r *run) {
	r.calm()
	for range testserver.Scale(10, 100) {
		before := r.l.refusals()
		r.proxy.Cut()
		r.l.Rounds(3)
		if n := r.l.refusals() - before; n > 2*workers {
			r.Errorf("all connections were cut once, and %d calls of %d visitors failed", n, workers)
		}
	}
	r.l.SetPatience(0)
	for range testserver.Scale(20, 200) {
		r.proxy.Cut()
		r.l.Visits(10)
	}
}

// cutAnswers lets the first bytes of answers through.
func cutAnswers(r *run) {
	random := rand.New(rand.NewPCG(1, 2))
	for range testserver.Scale(20, 300) {
		r.proxy.CutAnswers(random.IntN(1 << random.IntN(12)))
		r.l.Visits(10)
	}
	r.proxy.CutAnswers(-1)
	if n := r.proxy.Stats().Cuts; n == 0 {
		r.Errorf("no connection was cut")
	}
}

// cutOne cuts one connection in the middle of an answer: those who use others do not notice.
func cutOne(r *run) {
	limit := 1
	if r.Multiplexed {
		limit = workers
	}
	r.calm()
	random := rand.New(rand.NewPCG(3, 4))
	for range testserver.Scale(10, 100) {
		before, cuts := r.l.refusals(), r.proxy.Stats().Cuts
		r.proxy.CutOneAnswer(random.IntN(200))
		for r.proxy.Stats().Cuts == cuts {
			r.l.Visits(1)
		}
		r.l.Rounds(2)
		if n := r.l.refusals() - before; n > limit {
			r.Errorf("one connection was cut, and %d calls failed, want %d at most", n, limit)
		}
	}
}

// silent keeps everything back, and then lets it through: answers to callers who have gone long ago.
func silent(r *run) {
	for range 2 {
		r.proxy.Hold()
		r.probe(Down)
		r.l.Visits(testserver.Scale(80, 1000))
		r.proxy.Release()
		r.l.Visits(testserver.Scale(100, 1000))
	}
}

// silentOne keeps one connection's data back: those who use others do not notice, and the store gives it up.
func silentOne(r *run) {
	const short = 3 * time.Second
	r.calm()
	r.l.SetPatience(short)
	r.l.Rounds(2)
	before := r.l.refusals()
	r.proxy.HoldOne()
	for r.proxy.Stats().Held == 0 {
		r.l.Visits(1)
	}
	r.l.Visits(200)
	if !r.Multiplexed {
		r.l.Rounds(2)
		if n := r.l.refusals() - before; n > 1 {
			r.Errorf("one connection is silent, and %d visits failed, want 1 at most", n)
		}
	}
	r.l.Recovered(200) // while it is still silent
	r.Logf("one connection is silent: %d visits failed", r.l.refusals()-before)
	r.proxy.Release()
}

// slow makes answers come when about half of those who have asked are gone.
func slow(r *run) {
	r.proxy.Delay(2*time.Millisecond, 20*time.Millisecond)
	r.l.Visits(testserver.Scale(300, 10_000))
	r.proxy.Delay(0, 0)
}

// refused takes the server off the network, as far as new connections go.
func refused(r *run) {
	r.proxy.Refuse(true)
	r.proxy.Cut()
	r.probe(Down)
	r.l.Visits(testserver.Scale(100, 1000))
	r.proxy.Refuse(false)
}
