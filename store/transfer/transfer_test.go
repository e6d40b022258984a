package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/memory"
	"github.com/holdfast-sessions/holdfast/store/transfer"
)

// world is an old site and a new one, and a journal between them.
type world struct {
	t        testing.TB
	from, to *site
	path     string
}

func newWorld(t testing.TB) *world {
	return &world{
		t:    t,
		from: newSite(t, closing(t, memory.New()), holdfast.Config{}), to: newSite(t, closing(t, memory.New()), holdfast.Config{}),
		path: filepath.Join(t.TempDir(), "journal"),
	}
}

// run runs a copy as a process of its own would.
func (w *world) run() transfer.Result {
	w.t.Helper()
	j := mustJournal(w.t, w.path)
	r := mustRun(w.t, w.from.store, w.to.store, transfer.Config{Journal: j})
	if err := j.Close(); err != nil {
		w.t.Error(err)
	}
	return r
}

func (w *world) back() transfer.Result {
	w.t.Helper()
	j, err := transfer.OpenJournal(w.path, "to", "from")
	if err != nil {
		w.t.Fatal(err)
	}
	r := mustRun(w.t, w.to.store, w.from.store, transfer.Config{Journal: j})
	if err := j.Close(); err != nil {
		w.t.Error(err)
	}
	return r
}

func (w *world) want(s *site, token, user string, v int) {
	w.t.Helper()
	if u, n, err := s.who(w.t.Context(), token); u != user || n != v || err != nil {
		w.t.Errorf("session of user %q with %d, %v; want %q with %d", u, n, err, user, v)
	}
}

func TestCopy(t *testing.T) {
	w := newWorld(t)
	anonymous := w.from.set(t, "", 1)
	ada := w.from.login(t, w.from.set(t, "", 2), "ada")
	ada2 := w.from.login(t, w.from.set(t, "", 3), "ada")
	gone := w.from.login(t, w.from.set(t, "", 4), "bob")
	w.from.logout(t, gone)
	r := w.run()
	// Three sessions, and the records of two users.
	if r.Copied != 5 || r.Met != 5 || r.Failed != 0 || !r.Settled || r.Passes != 2 {
		t.Errorf("copied %+v, want 5 records in one pass and nothing in another", r)
	}
	wantEqual(t, w.from.store, w.to.store, false)
	w.want(w.to, anonymous, "", 1)
	w.want(w.to, ada, "ada", 2)
	w.want(w.to, ada2, "ada", 3)
	w.want(w.to, gone, "", 0)
	if r := w.run(); r.Same != 5 || r.Met != 5 || r.Writes != 1 || !r.Settled {
		t.Errorf("copied again: %+v, want nothing written but a probe", r)
	}
	if err := w.to.m.RevokeUser(t.Context(), "ada"); err != nil {
		t.Error(err)
	}
	w.want(w.to, ada, "", 0)
	w.want(w.to, ada2, "", 0)
	// What ended there stays ended, whatever FROM does.
	w.from.set(t, ada, 20)
	if r := w.run(); r.EndedThere != 1 || r.Copied != 0 {
		t.Errorf("copied after a revocation in TO: %+v, want one that ended there", r)
	}
	w.want(w.to, ada, "", 0)
	w.want(w.to, ada2, "", 0)
}

// TestEndedBetweenRuns: what ended in FROM is ended in TO, also long after its marker is gone.
func TestEndedBetweenRuns(t *testing.T) {
	w := newWorld(t)
	marked, vanished, changed, touched := w.from.set(t, "", 1), w.from.login(t, w.from.set(t, "", 2), "ada"), w.from.set(t, "", 3), w.from.login(t, "", "eve")
	stays := w.from.login(t, w.from.set(t, "", 5), "ada")
	w.run()
	w.from.logout(t, marked)
	w.from.logout(t, vanished)
	w.from.logout(t, changed)
	if err := w.from.m.Revoke(t.Context(), mustID(t, touched)); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{vanished, changed} { // as 30 seconds later
		if err := w.from.store.Delete(t.Context(), mustID(t, token)); err != nil {
			t.Fatal(err)
		}
	}
	w.to.set(t, changed, 33) // somebody uses the new site already
	r := w.run()
	if r.Ended != 3 || r.Kept != 1 {
		t.Errorf("%+v, want 3 ended and 1 kept", r)
	}
	w.want(w.to, marked, "", 0)
	w.want(w.to, vanished, "", 0)
	w.want(w.to, touched, "", 0)
	w.want(w.to, changed, "", 33)
	w.want(w.to, stays, "ada", 5)
	for _, user := range []string{"ada", "eve"} {
		a, errA := w.from.m.List(t.Context(), user)
		b, errB := w.to.m.List(t.Context(), user)
		if len(a) != len(b) || errA != nil || errB != nil {
			t.Errorf("%s has %d sessions in FROM and %d in TO (%v, %v)", user, len(a), len(b), errA, errB)
		}
	}
	got, err := w.to.store.Load(t.Context(), holdfast.UserID("ada"))
	if err != nil || got.Fields.Len() != 1 {
		t.Errorf("the record of ada lists %d sessions in TO (%v), want 1", got.Fields.Len(), err)
	}
}

// TestBothInUse: users log in on the new site before the old one is copied.
func TestBothInUse(t *testing.T) { synctest.Test(t, bothInUse) }

func bothInUse(t *testing.T) {
	w := newWorld(t)
	old := w.from.login(t, w.from.set(t, "", 1), "ada")
	own := w.to.login(t, w.to.set(t, "", 2), "ada")
	r := w.run()
	if r.Copied != 2 || r.Failed != 0 {
		t.Errorf("%+v, want a session and a merged user record", r)
	}
	later := w.from.login(t, w.from.set(t, "", 3), "ada")
	ownLater := w.to.login(t, w.to.set(t, "", 4), "ada")
	w.run()
	for token, v := range map[string]int{old: 1, own: 2, later: 3, ownLater: 4} {
		w.want(w.to, token, "ada", v)
	}
	if list, err := w.to.m.List(t.Context(), "ada"); err != nil || len(list) != 4 {
		t.Errorf("%d sessions listed in TO (%v), want 4", len(list), err)
	}
	w.from.logout(t, old)
	w.to.logout(t, own)
	w.run()
	if list, err := w.to.m.List(t.Context(), "ada"); err != nil || len(list) != 2 {
		t.Errorf("after two logouts %d sessions listed in TO (%v), want 2", len(list), err)
	}
	// A session that both use: the later state stays, whole.
	w.from.set(t, later, 5)
	time.Sleep(time.Second)
	w.to.set(t, later, 6)
	w.run()
	w.want(w.to, later, "ada", 6)
	time.Sleep(time.Second)
	w.from.set(t, later, 7)
	if r := w.run(); r.Diverged != 1 {
		t.Errorf("%+v, want one diverged", r)
	}
	w.want(w.to, later, "ada", 7)
	if err := w.to.m.RevokeUser(t.Context(), "ada"); err != nil {
		t.Error(err)
	}
	for token := range map[string]int{old: 1, own: 2, later: 3, ownLater: 4} {
		w.want(w.to, token, "", 0)
	}
	w.run()
	w.want(w.to, later, "", 0)
}

// TestBack: the same journal serves the way back, with what ended on the new site.
func TestBack(t *testing.T) {
	w := newWorld(t)
	stays, ends, changes := w.from.login(t, w.from.set(t, "", 1), "ada"), w.from.login(t, "", "ada"), w.from.set(t, "", 3)
	w.run()
	w.to.logout(t, ends)
	if err := w.to.store.Delete(t.Context(), mustID(t, ends)); err != nil { // its marker, as 30 seconds later
		t.Fatal(err)
	}
	w.to.set(t, changes, 33)
	added := w.to.login(t, w.to.set(t, "", 4), "bob")
	w.back()
	wantEqual(t, w.to.store, w.from.store, true)
	w.want(w.from, stays, "ada", 1)
	w.want(w.from, ends, "", 0)
	w.want(w.from, changes, "", 33)
	w.want(w.from, added, "bob", 4)
	if r := w.run(); r.Copied != 0 || r.Ended != 0 {
		t.Errorf("and forth again: %+v, want nothing to do", r)
	}
}

// TestNotCopied: what cannot be copied, and what must not be.
func TestNotCopied(t *testing.T) {
	from, to := closing(t, memory.New()), closing(t, memory.New())
	now := time.UnixMilli(time.Now().UnixMilli())
	save := func(n byte, rec driver.Record) {
		rec.Seen, rec.Revision = now, driver.NewRevision(0)
		if rec.Expires.IsZero() {
			rec.Expires = now.Add(time.Hour)
		}
		if err := from.Save(t.Context(), driver.ID{n}, rec, 0); err != nil {
			t.Fatal(err)
		}
	}
	big := driver.Fields{}.With(driver.Change{Name: "big", Value: make([]byte, 5000)})
	save(1, driver.Record{Created: now})
	save(2, driver.Record{Created: now, Fields: big})
	save(3, driver.Record{Created: now, User: "nobody lists it"})
	save(4, driver.Record{}) // a marker
	save(5, driver.Record{Created: now, Expires: now.Add(200 * time.Millisecond)})
	r, err := transfer.Run(t.Context(), slowList{from}, limited{to}, transfer.Config{})
	wantSum(t, r)
	if err != nil || r.Copied != 1 || r.Failed != 1 || r.Unlisted != 1 || r.Expired != 1 || r.Met != 4 {
		t.Errorf("%+v, %v, want one each copied, failed, unlisted and expired", r, err)
	}
	if len(r.Failures) != 1 || r.Failures[0].ID != (driver.ID{2}) || !errors.Is(r.Failures[0].Err, driver.ErrTooLarge) {
		t.Errorf("failures %v", r.Failures)
	}
}

// slowList yields each record half a second after it was read.
type slowList struct{ driver.Store }

func (s slowList) List(ctx context.Context) iter.Seq2[driver.Item, error] {
	return func(yield func(driver.Item, error) bool) {
		var all []driver.Item
		for item, err := range s.Store.(driver.Lister).List(ctx) {
			if err != nil {
				yield(item, err)
				return
			}
			all = append(all, item)
		}
		time.Sleep(300 * time.Millisecond)
		for _, item := range all {
			if !yield(item, nil) {
				return
			}
		}
	}
}

// limited is a store of small records.
type limited struct{ driver.Store }

func (limited) Describe() driver.Description {
	return driver.Description{Name: "limited", MaxBytes: 4000}
}

func TestRefuses(t *testing.T) {
	s := closing(t, memory.New())
	if _, err := transfer.Run(t.Context(), s, plain{s}, transfer.Config{}); !errors.Is(err, transfer.ErrSame) {
		t.Errorf("FROM is TO: %v, want ErrSame", err)
	}
	if n := len(listed(t, s)); n != 0 {
		t.Errorf("%d records left behind", n)
	}
	if _, err := transfer.Run(t.Context(), limited{s}, closing(t, memory.New()), transfer.Config{}); !errors.Is(err, transfer.ErrCannotList) {
		t.Errorf("FROM cannot list: %v, want ErrCannotList", err)
	}
	closed := memory.New()
	_ = closed.Close() // to be unavailable
	if _, err := transfer.Run(t.Context(), s, closed, transfer.Config{}); !errors.Is(err, driver.ErrClosed) {
		t.Errorf("TO is closed: %v, want ErrClosed", err)
	}
}

// TestVanished: a FROM that has lost its memory does not end everything in TO.
func TestVanished(t *testing.T) {
	w := newWorld(t)
	seed(t, w.from.store, 2000)
	w.run()
	w.from = newSite(t, closing(t, memory.New()), holdfast.Config{})
	j := mustJournal(t, w.path)
	r, err := transfer.Run(t.Context(), w.from.store, w.to.store, transfer.Config{Journal: j})
	if !errors.Is(err, transfer.ErrVanished) || r.Ended != 0 || len(listed(t, w.to.store)) != 3000 {
		t.Errorf("%+v, %v, want ErrVanished and nothing ended", r, err)
	}
	_ = j.Close() // for the next
	j = mustJournal(t, w.path)
	r = mustRun(t, w.from.store, w.to.store, transfer.Config{Journal: j, EndMany: true})
	if r.Ended != 2000 {
		t.Errorf("%+v, want 2000 ended", r)
	}
}

// TestKilled kills the copy at each of its calls, before or right after it. Meanwhile the old site goes on, and then
// the copy is run again.
func TestKilled(t *testing.T) {
	kills := 0
	for _, after := range []bool{false, true} {
		for at := int64(1); ; at++ {
			w := newWorld(t)
			var tokens []string
			for i := range 3 {
				tokens = append(tokens, w.from.set(t, "", i))
				for range 2 {
					tokens = append(tokens, w.from.login(t, w.from.set(t, "", i), fmt.Sprint("user", i)))
				}
			}
			j := mustJournal(t, w.path)
			m := &mortal{Store: w.to.store, killAt: at, after: after}
			if _, err := transfer.Run(t.Context(), w.from.store, m, transfer.Config{Journal: j, Parallel: 1}); err == nil {
				break // it has fewer calls
			}
			kills++
			_ = j.Close() // by the kernel
			before := listed(t, w.to.store)

			w.from.logout(t, tokens[1])
			for _, token := range []string{tokens[0], tokens[2], tokens[4]} {
				w.from.logout(t, token)
				if err := w.from.store.Delete(t.Context(), mustID(t, token)); err != nil { // the marker
					t.Fatal(err)
				}
			}
			w.from.set(t, tokens[3], 100)
			late := w.from.login(t, w.from.set(t, "", 200), "user1")

			j = mustJournal(t, w.path)
			m = &mortal{Store: w.to.store, onSave: func(id driver.ID, rec driver.Record) {
				if there, ok := before[id]; ok && there.Revision == rec.Revision && !isUser(id, rec) {
					t.Errorf("the second run writes %s, which the first has written", id)
				}
			}}
			r := mustRun(t, w.from.store, m, transfer.Config{Journal: j, Parallel: 1})
			_ = j.Close() // checked elsewhere
			wantEqual(t, w.from.store, w.to.store, true)
			w.want(w.to, tokens[3], "", 100)
			w.want(w.to, late, "user1", 200)
			for _, token := range []string{tokens[0], tokens[1], tokens[2], tokens[4]} {
				w.want(w.to, token, "", 0)
			}
			if t.Failed() {
				t.Fatalf("killed at call %d, after it: %v; result %+v", at, after, r)
			}
		}
	}
	t.Logf("killed %d times", kills)
	if kills < 40 {
		t.Errorf("killed %d times, which proves little", kills)
	}
}

func TestJournalRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	j := mustJournal(t, path)
	if _, err := transfer.OpenJournal(path, "from", "to"); !errors.Is(err, transfer.ErrJournal) || !strings.Contains(err.Error(), "another copy is using") {
		t.Errorf("in use: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	if _, err := transfer.OpenJournal(path, "from", "elsewhere"); !errors.Is(err, transfer.ErrJournal) || !strings.Contains(err.Error(), "another pair") {
		t.Errorf("another pair: %v", err)
	}
	if _, err := transfer.OpenJournal(filepath.Join(dir, "no", "journal"), "from", "to"); err == nil {
		t.Error("no directory: no error")
	}
}
