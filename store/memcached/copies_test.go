package memcached_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/memcached"
)

// firstOn returns n IDs whose first server is the given one.
func firstOn(s *memcached.Store, server, n int) (ids []driver.ID) {
	for i := 0; len(ids) < n; i++ {
		if first, _ := s.ServerOf(idOf(i)); first == server {
			ids = append(ids, idOf(i))
		}
	}
	return ids
}

// With a second copy, a server that dies takes no session along: they are read meanwhile, not written, and written again
// when it is back, empty.
func TestCopiesWithAServerKilled(t *testing.T) {
	srvs, url := mustServers(t, 3)
	s := mustOpen(t, url+"?copies=2")
	recs := make(map[driver.ID]driver.Record)
	for i := range 90 {
		recs[idOf(i)] = record(idOf(i).Hex())
		mustSave(t, s, idOf(i), recs[idOf(i)], 0)
	}
	for dead, srv := range srvs {
		srv.Stop()
		for id, rec := range recs {
			wantStored(t, s, id, rec)
			first, second := s.ServerOf(id)
			err := s.Save(t.Context(), id, after(rec), rec.Revision+1)
			if first == dead || second == dead {
				wantErr(t, "Save with one of two servers down", err, driver.ErrUnavailable)
			} else {
				wantErr(t, "Save with another prev", err, driver.ErrConflict)
			}
		}
		srv.Restart()
		for id, rec := range recs {
			next := after(rec, set("dead", fmt.Sprint(dead)))
			eventually(t, "a save after the restart", func() error {
				err := s.Save(t.Context(), id, next, rec.Revision)
				if errors.Is(err, driver.ErrConflict) {
					t.Fatalf("Save after the restart = %v", err)
				}
				return err
			})
			recs[id] = next
		}
	}
	for id, rec := range recs {
		wantStored(t, s, id, rec)
	}
	if l := s.Losses(); l.Missing > 0 || l.SecondCopy == 0 || l.Restarts != 3 {
		t.Errorf("Losses = %+v, want none missing, some answered by the second copy, and 3 restarts", l)
	}
}

// A logout while one server is down is not reported done; when the other is told, it holds.
func TestCopiesLogoutWithAServerDown(t *testing.T) {
	srvs, url := mustServers(t, 2)
	s := mustOpen(t, url+"?copies=2")
	id := firstOn(s, 0, 1)[0]
	rec := record("ada")
	mustSave(t, s, id, rec, 0)
	srvs[0].Stop()
	wantErr(t, "Delete with the first server down", s.Delete(t.Context(), id), driver.ErrUnavailable)
	_, err := s.Load(t.Context(), id)
	wantErr(t, "Load from the second", err, driver.ErrNotFound)
	srvs[0].Restart()
	eventually(t, "with the first server back, empty", func() error {
		if _, err := s.Load(t.Context(), id); !errors.Is(err, driver.ErrNotFound) {
			return fmt.Errorf("Load = %v, want ErrNotFound", err)
		}
		return nil
	})
	eventually(t, "a late Save", func() error {
		if err := s.Save(t.Context(), id, after(rec), rec.Revision); !errors.Is(err, driver.ErrConflict) {
			return fmt.Errorf("Save = %v, want ErrConflict", err)
		}
		return nil
	})
	eventually(t, "Delete with both", func() error { return s.Delete(t.Context(), id) })

	mustSave(t, s, id, rec, 0)
	srvs[1].Stop()
	wantErr(t, "Delete with the second server down", s.Delete(t.Context(), id), driver.ErrUnavailable)
	wantStored(t, s, id, rec) // nothing was done
}

// A server that hangs costs a reader half of its time, once: then it counts as down.
func TestCopiesWithAServerFrozen(t *testing.T) {
	srvs, url := mustServers(t, 2)
	s := mustOpen(t, url+"?copies=2&conns=4")
	id := firstOn(s, 0, 1)[0]
	rec := record("ada")
	mustSave(t, s, id, rec, 0)
	srvs[0].Freeze()
	for range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		got, err := s.Load(ctx, id)
		cancel()
		if err != nil || got.Revision != rec.Revision {
			t.Errorf("Load with the first server frozen = %v", err)
		}
	}
	srvs[0].Thaw()
	eventually(t, "after the server answers again", func() error { return s.Save(t.Context(), id, after(rec), rec.Revision) })
}

// What one server forgets (an eviction), the other remembers: sessions, and that they ended.
func TestCopiesForgotten(t *testing.T) {
	srvs, url := mustServers(t, 2)
	s := mustOpen(t, url+"?copies=2")
	ids := firstOn(s, 0, 4)
	first := admin{t, srvs[0].Addr}
	forget := func(id driver.ID) { first.do("delete "+key(id)+"\r\n", 1) }
	has := func(a admin, id driver.ID) bool { return a.do("get "+key(id)+"\r\n", 1)[0] != "END" }
	rec := record("ada")
	for _, id := range ids {
		mustSave(t, s, id, rec, 0)
		forget(id)
	}
	wantStored(t, s, ids[0], rec)
	if !has(first, ids[0]) {
		t.Error("a Load that found the second copy only did not make a first one of it")
	}
	mustSave(t, s, ids[1], after(rec), rec.Revision)
	wantErr(t, "Save of a new record over a second copy", s.Save(t.Context(), ids[2], after(rec), 0), driver.ErrConflict)
	listed := 0
	for item, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if listed++; item.Record.User != "ada" {
			t.Errorf("List yields %+v", item)
		}
	}
	if listed != len(ids) {
		t.Errorf("List yields %d records, want %d", listed, len(ids))
	}
	mustDelete(t, s, ids[3])
	forget(ids[3])
	_, err := s.Load(t.Context(), ids[3])
	wantErr(t, "Load of an ended session that the first server forgot", err, driver.ErrNotFound)
	wantErr(t, "a late Save over it", s.Save(t.Context(), ids[3], after(rec), rec.Revision), driver.ErrConflict)
	if l := s.Losses(); l.Missing != 0 || l.Ended != 1 || l.SecondCopy != 1 {
		t.Errorf("Losses = %+v, want 1 ended, 1 from the second copy, none missing", l)
	}
}

// TestCopiesUnderLoad: while servers are killed and restarted in turn, no acknowledged save is lost, no session that was
// ended returns, and nobody is told that a session is gone.
func TestCopiesUnderLoad(t *testing.T) {
	t.Parallel()
	srvs, url := mustServers(t, 3)
	s := mustOpen(t, url+"?copies=2")
	workers, rounds := 16, testserver.Scale(4, 60)
	type session struct {
		id       driver.ID
		prev     driver.Record   // acknowledged last
		maybe    []driver.Record // what may have been saved since
		ended    bool            // acknowledged
		mayEnded bool
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var calls atomic.Int64
	counts := make([]map[string]int, workers)
	for w := range workers {
		counts[w] = make(map[string]int)
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 5))
			count := counts[w]
			var own []*session
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if len(own) < 40 {
					x := &session{id: idOf(w*1_000_000 + n), prev: record(fmt.Sprint("user", w))}
					if s.Save(t.Context(), x.id, x.prev, 0) == nil {
						own = append(own, x)
					}
				}
				if len(own) == 0 {
					continue
				}
				calls.Add(1)
				x := own[r.IntN(len(own))]
				rec, err := s.Load(t.Context(), x.id)
				known := err == nil && rec.Revision == x.prev.Revision
				for _, m := range x.maybe {
					known = known || err == nil && rec.Revision == m.Revision
				}
				switch {
				case errors.Is(err, driver.ErrUnavailable):
					count["unavailable"]++
					continue
				case x.ended && err == nil:
					t.Errorf("%s was ended, and is back", x.id)
					continue
				case x.ended || x.mayEnded && errors.Is(err, driver.ErrNotFound):
					if count["ended"]++; r.IntN(20) == 0 { // make room for a new one
						own = slices.DeleteFunc(own, func(y *session) bool { return y == x })
					}
					continue
				case errors.Is(err, driver.ErrNotFound):
					t.Errorf("%s is gone", x.id)
					x.mayEnded = true
					continue
				case err != nil || rec.User != fmt.Sprint("user", w):
					t.Errorf("%s: %v, user %q", x.id, err, rec.User)
					continue
				case !known:
					t.Errorf("%s is revision %d, want %d, or one of %d that may have been saved", x.id, rec.Revision, x.prev.Revision, len(x.maybe))
				}
				count["read"]++
				if r.IntN(10) == 0 {
					if err := s.Delete(t.Context(), x.id); err == nil {
						x.ended = true
					} else {
						x.mayEnded = true
					}
					continue
				}
				next := after(rec, set("n", fmt.Sprint(n)))
				next.Tag = rec.Tag
				switch err := s.Save(t.Context(), x.id, next, rec.Revision); {
				case err == nil:
					x.prev, x.maybe = next, nil
					count["saved"]++
				case errors.Is(err, driver.ErrUnavailable):
					x.maybe = append(x.maybe, next)
					count["unavailable"]++
				case errors.Is(err, driver.ErrConflict) && (len(x.maybe) > 0 || x.mayEnded):
				default:
					t.Errorf("Save of %s = %v", x.id, err)
				}
			}
		})
	}
	pause := func() { // until some calls have been made
		until := calls.Load() + 2000
		eventually(t, "calls", func() error {
			if n := calls.Load(); n < until {
				return fmt.Errorf("%d calls short", until-n)
			}
			return nil
		})
	}
	for n := range rounds {
		srv := srvs[n%len(srvs)]
		pause()
		srv.Stop()
		pause()
		srv.Restart()
		// Another server may die when each record is on both of its servers again: reads make first copies, and saves
		// second ones.
		eventually(t, "all copied again", func() error { return recopy(t, s) })
	}
	close(stop)
	wg.Wait()
	total := make(map[string]int)
	for _, c := range counts {
		for k, n := range c {
			total[k] += n
		}
	}
	t.Logf("%d kills; %v; %+v", rounds, total, s.Losses())
	if total["read"] == 0 || total["saved"] == 0 || total["unavailable"] == 0 {
		t.Errorf("%v: want some of each", total)
	}
}

// recopy saves every record anew, as a touch that is due does.
func recopy(t *testing.T, s *memcached.Store) error {
	var items []driver.Item
	for item, err := range s.List(t.Context()) {
		if err != nil {
			return err
		}
		items = append(items, item)
	}
	for _, item := range items {
		for {
			rec, err := s.Load(t.Context(), item.ID)
			if errors.Is(err, driver.ErrNotFound) {
				break
			}
			if err != nil {
				return err
			}
			// The same revision, so that its owner knows it.
			err = s.Save(t.Context(), item.ID, rec, rec.Revision)
			if err == nil {
				break
			}
			if !errors.Is(err, driver.ErrConflict) {
				return err
			}
		}
	}
	return nil
}
