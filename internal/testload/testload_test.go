package testload_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testload"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broken is a store in memory with a fault: each of its functions that is set is asked now and then in place of the
// store.
type broken struct {
	driver.Store
	load func(id driver.ID) (driver.Record, error)
	save func(id driver.ID, rec driver.Record, prev uint64) error
	del  func(id driver.ID) error

	mu      sync.Mutex
	deleted map[driver.ID]driver.Record
}

func sometimes() bool { return rand.IntN(10) == 0 }

func (b *broken) Load(ctx context.Context, id driver.ID) (driver.Record, error) {
	if b.load != nil && sometimes() {
		return b.load(id)
	}
	return b.Store.Load(ctx, id)
}

func (b *broken) Save(ctx context.Context, id driver.ID, rec driver.Record, prev uint64) error {
	if b.save != nil && sometimes() {
		return b.save(id, rec, prev)
	}
	return b.Store.Save(ctx, id, rec, prev)
}

func (b *broken) Delete(ctx context.Context, id driver.ID) error {
	if b.del != nil && rand.IntN(2) == 0 {
		return b.del(id)
	}
	return b.Store.Delete(ctx, id)
}

// TestAudit runs stores with one fault each: it is counted as what it is, and as nothing else. What a call without an
// acknowledgement may do is no fault.
func TestAudit(t *testing.T) {
	ctx := context.Background()
	down := driver.Unavailable(errors.New("cut off"))
	type counts struct{ wrong, writes, sessions, revived, foreign bool }
	for _, tt := range []struct {
		name string
		set  func(b *broken, s driver.Store)
		want counts
	}{
		{"sound", func(*broken, driver.Store) {}, counts{}},
		{"another's record", func(b *broken, s driver.Store) {
			b.load = func(id driver.ID) (driver.Record, error) {
				first := sha256.Sum256([]byte(strconv.Itoa(1))) // as Load names them; it never logs out
				rec, err := s.Load(ctx, first)
				if err != nil { // not made yet
					return s.Load(ctx, id)
				}
				return rec, err
			}
		}, counts{wrong: true}},
		{"a counter that nobody wrote", func(b *broken, s driver.Store) {
			b.load = func(id driver.ID) (driver.Record, error) {
				rec, err := s.Load(ctx, id)
				rec.Fields = rec.Fields.With(driver.Change{Name: "n", Value: []byte("1000000")})
				return rec, err
			}
		}, counts{wrong: true}},
		{"writes what it refused", func(b *broken, s driver.Store) {
			b.save = func(id driver.ID, rec driver.Record, prev uint64) error {
				_ = s.Save(ctx, id, rec, prev)
				return driver.ErrConflict
			}
		}, counts{wrong: true}},
		{"forgets a write", func(b *broken, _ driver.Store) {
			b.save = func(driver.ID, driver.Record, uint64) error { return nil }
		}, counts{writes: true, sessions: true}},
		{"forgets a session", func(b *broken, s driver.Store) {
			b.save = func(id driver.ID, rec driver.Record, prev uint64) error {
				err := s.Save(ctx, id, rec, prev)
				return errors.Join(err, s.Delete(ctx, id))
			}
		}, counts{sessions: true}},
		{"forgets a logout", func(b *broken, _ driver.Store) {
			b.del = func(driver.ID) error { return nil }
		}, counts{revived: true}},
		{"revives later", func(b *broken, s driver.Store) {
			b.del = func(id driver.ID) error {
				rec, err := s.Load(ctx, id)
				if err != nil {
					return nil
				}
				b.mu.Lock()
				b.deleted[id] = rec
				b.mu.Unlock()
				return s.Delete(ctx, id)
			}
		}, counts{revived: true}},
		{"unknown errors", func(b *broken, _ driver.Store) {
			b.load = func(driver.ID) (driver.Record, error) { return driver.Record{}, errors.New("oops") }
		}, counts{foreign: true}},

		{"unacknowledged, done", func(b *broken, s driver.Store) {
			b.load = func(driver.ID) (driver.Record, error) { return driver.Record{}, down }
			b.save = func(id driver.ID, rec driver.Record, prev uint64) error {
				_ = s.Save(ctx, id, rec, prev)
				return down
			}
			b.del = func(id driver.ID) error {
				_ = s.Delete(ctx, id)
				return down
			}
		}, counts{}},
		{"unacknowledged, not done", func(b *broken, _ driver.Store) {
			b.load = func(driver.ID) (driver.Record, error) { return driver.Record{}, down }
			b.save = func(driver.ID, driver.Record, uint64) error { return down }
			b.del = func(driver.ID) error { return down }
		}, counts{}},
		{"unacknowledged, done later", func(b *broken, s driver.Store) {
			b.save = func(id driver.ID, rec driver.Record, prev uint64) error {
				time.AfterFunc(5*time.Millisecond, func() { _ = s.Save(ctx, id, rec, prev) })
				return down
			}
		}, counts{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := memory.New()
			t.Cleanup(func() { s.Close() })
			b := &broken{Store: s, deleted: make(map[driver.ID]driver.Record)}
			tt.set(b, s)
			l := testload.Start(t, testload.Config{Stores: []driver.Store{b}, Sessions: 50, Pause: 100 * time.Microsecond})
			l.Progress(3000)
			b.mu.Lock()
			revive := b.deleted
			b.deleted = make(map[driver.ID]driver.Record)
			b.mu.Unlock()
			for id, rec := range revive {
				if err := s.Save(ctx, id, rec, 0); err != nil {
					t.Error(err)
				}
			}
			r := l.Audit(s)
			got := counts{r.Wrong > 0, r.LostWrites > 0, r.LostSessions > 0, r.Revived > 0, r.Errors[testload.Foreign] > 0}
			if got != tt.want || r.Writes < 3000 || r.Logouts == 0 || r.Errors[testload.Audited] > 0 {
				t.Errorf("found %+v, want %+v: %v", got, tt.want, r)
			}
		})
	}
}
