package testfault

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
)

// visit is one request of somebody who has a session. Its session is locked.
type visit struct {
	l   *Load
	x   *session
	s   driver.Store
	r   *rand.Rand
	ctx context.Context

	refused bool
	err     error // the last that it was refused with
}

// run makes a visit.
func (v *visit) run(patience time.Duration) {
	hurry := patience == 0
	if hurry {
		switch v.r.IntN(4) {
		case 0:
			patience = time.Duration(v.r.IntN(2000)) * time.Microsecond
		case 1, 2:
			patience = time.Duration(v.r.IntN(50)) * time.Millisecond
		default:
			patience = time.Duration(v.r.IntN(500)) * time.Millisecond
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if hurry && v.r.IntN(8) == 0 {
		defer time.AfterFunc(time.Duration(v.r.IntN(3000))*time.Microsecond, cancel).Stop()
	}
	v.ctx = ctx
	if v.x.phase == fresh {
		v.create()
		return
	}
	rec, ok := v.load()
	switch {
	case v.x.phase == ended && v.x.lastRead.Revision != 0 && !v.refused:
		v.writeLate()
	case !ok:
	case v.x.phase == ending || v.r.IntN(v.l.o.Logouts) == 0:
		v.logout()
	default:
		switch n := v.r.IntN(10); {
		case n < 3:
			v.save(rec)
		case n < 5:
			v.merge(rec)
		case n < 6:
			v.touch(rec)
		}
	}
}

// do makes a call and looks at how it ended, other than with ErrNotFound or ErrConflict, which are the caller's to judge.
func (v *visit) do(op string, f func(context.Context) error) (answered bool, err error) {
	err = f(v.ctx)
	if deadline, ok := v.ctx.Deadline(); ok {
		if late := time.Since(deadline); late > 0 {
			v.l.count(func(r *Result) {
				r.Latest = max(r.Latest, late)
				if late > slack {
					r.Late++
				}
			})
		}
	}
	conflict, notFound := errors.Is(err, driver.ErrConflict), errors.Is(err, driver.ErrNotFound)
	if err == nil || (conflict || notFound) && !errors.Is(err, driver.ErrUnavailable) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return true, err
	}
	v.refused, v.err = true, err
	kind := kindOf(v.ctx, err)
	if kind == "" {
		v.l.wrong("%s of session %s = %v, which the contract does not allow", op, v.x.id, err)
		kind = "wrong"
	}
	v.l.count(func(r *Result) {
		r.Refused[kind]++
		if op != "Load" {
			r.Unsure++
		}
	})
	return false, err
}

// acked notes a write.
func (v *visit) acked() { v.l.count(func(r *Result) { r.Acked++ }) }

func (v *visit) create() {
	rec := v.x.first()
	answered, err := v.do("create", func(ctx context.Context) error { return v.s.Save(ctx, v.x.id, rec, 0) })
	switch {
	case !answered:
		v.x.phase = doubtful
	case err != nil: // with what? Nobody knows its ID.
		v.overtaken()
		v.x.phase = doubtful
	default:
		v.x.saw(v.x.tried, true)
		v.x.phase, v.x.lastRead = live, rec
		v.acked()
	}
}

// load returns the session if it lives.
func (v *visit) load() (driver.Record, bool) {
	x := v.x
	var rec driver.Record
	answered, err := v.do("Load", func(ctx context.Context) (err error) {
		rec, err = v.s.Load(ctx, x.id)
		return err
	})
	switch {
	case !answered:
		return rec, false
	case errors.Is(err, driver.ErrConflict):
		v.l.wrong("Load of session %s = %v", x.id, err)
		return rec, false
	case err != nil:
		v.missing()
		return rec, false
	}
	if x.phase == ended {
		v.revived()
		return rec, false
	}
	return rec, v.check("Load", rec)
}

// check compares a record with what is known of the session.
func (v *visit) check(op string, rec driver.Record) bool {
	x := v.x
	n, merged, wrong := x.read(rec)
	if wrong != "" {
		v.l.wrong("%s: %s", op, wrong)
		return false
	}
	lost, undone, wrong := x.saw(n, false)
	if wrong != "" {
		v.l.wrong("%s: %s", op, wrong)
		return false
	}
	lost += x.sawMerge(merged)
	if lost+undone > 0 {
		v.l.count(func(r *Result) { r.Lost += lost; r.Undone += undone })
	}
	if x.phase == forgotten {
		v.l.wrong("%s: session %s was not found before, and is there: two servers answer", op, x.id)
		return false
	}
	x.lastRead = rec
	return true
}

// missing notes that the session was not found.
func (v *visit) missing() {
	switch v.x.phase {
	case live:
		v.x.phase = forgotten
		v.l.count(func(r *Result) { r.Gone++ })
	case ending:
		v.x.phase = ended
	case fresh, doubtful, ended, forgotten:
	}
}

// revived notes that a session that has ended is back.
func (v *visit) revived() {
	if v.x.revived {
		return
	}
	v.x.revived = true
	v.l.count(func(r *Result) {
		if v.x.endedAcked {
			r.Revived++
		} else {
			r.Undone++
		}
	})
}

// overtaken notes a write that lost a race without a rival.
func (v *visit) overtaken() {
	if !v.x.pending && len(v.x.unsure) == 0 {
		v.l.count(func(r *Result) { r.Overtaken++ })
	}
}

func (v *visit) save(rec driver.Record) {
	x := v.x
	next := x.next(rec)
	n := x.tried
	answered, err := v.do("Save", func(ctx context.Context) error { return v.s.Save(ctx, x.id, next, rec.Revision) })
	switch {
	case !answered:
		x.pending = true
	case errors.Is(err, driver.ErrConflict):
		v.overtaken()
	case err != nil:
		v.l.wrong("Save of session %s = %v, want ErrConflict where there is none", x.id, err)
	default:
		// What is still on its way starts from a revision that is no more.
		x.pending = false
		x.saw(n, true)
		x.lastRead = next
		v.acked()
	}
}

func (v *visit) merge(rec driver.Record) {
	m, ok := v.s.(driver.Merger)
	if !ok {
		v.save(rec)
		return
	}
	x := v.x
	changes := x.merge()
	next := later(rec)
	next.Fields = rec.Fields.With(changes...)
	var got driver.Record
	answered, err := v.do("Merge", func(ctx context.Context) (err error) {
		got, err = m.Merge(ctx, x.id, rec, next, changes)
		return err
	})
	switch {
	case !answered:
		x.unsure = append(x.unsure, x.triedMerge)
	case errors.Is(err, driver.ErrNotFound):
		v.missing()
	case err != nil:
		v.l.wrong("Merge of session %s = %v, and its life is the same", x.id, err)
	default:
		x.merged = append(x.merged, x.triedMerge)
		v.acked()
		v.check("Merge", got)
	}
}

func (v *visit) touch(rec driver.Record) {
	t, ok := v.s.(driver.Toucher)
	if !ok {
		v.save(rec)
		return
	}
	next := later(rec)
	answered, err := v.do("Touch", func(ctx context.Context) error { return t.Touch(ctx, v.x.id, next, rec.Revision) })
	switch {
	case !answered:
		v.x.pending = true
	case errors.Is(err, driver.ErrNotFound):
		v.missing()
	case err != nil:
		v.overtaken()
	default:
		v.x.pending = false
		v.x.lastRead.Revision = next.Revision
		v.acked()
	}
}

func (v *visit) logout() {
	answered, err := v.do("Delete", func(ctx context.Context) error { return v.s.Delete(ctx, v.x.id) })
	switch {
	case !answered:
		v.x.phase = ending
	case err != nil:
		v.l.wrong("Delete of session %s = %v", v.x.id, err)
	default:
		v.x.phase, v.x.endedAcked = ended, true
		v.l.count(func(r *Result) { r.Ended++ })
	}
}

// writeLate is a slow request that ends after the session did: it must not bring it back.
func (v *visit) writeLate() {
	x := v.x
	rec := x.lastRead
	next := x.next(rec)
	var err error
	var answered bool
	m, merges := v.s.(driver.Merger)
	if merges && v.r.IntN(2) == 0 {
		changes := x.merge()
		next.Fields = rec.Fields.With(changes...)
		answered, err = v.do("late Merge", func(ctx context.Context) error {
			_, err := m.Merge(ctx, x.id, rec, next, changes)
			return err
		})
	} else {
		answered, err = v.do("late Save", func(ctx context.Context) error { return v.s.Save(ctx, x.id, next, rec.Revision) })
	}
	if answered && err == nil {
		v.revived()
	}
}
