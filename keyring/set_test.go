package keyring_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/keyring"
)

func wantState(t testing.TB, s *keyring.Set, id uint32, want keyring.State) {
	t.Helper()
	if k, state := s.Find(id); state != want || k.State() != want {
		t.Errorf("key %08x is %v, want %v", id, state, want)
	}
}

func wantError(t testing.TB, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		first := keyring.NewSet()
		a := first.Active().ID()
		time.Sleep(time.Hour)
		second, kb, err := first.Add()
		must(t, err)
		b := kb.ID()
		wantState(t, second, a, keyring.Active)
		wantState(t, second, b, keyring.Waiting)
		wantState(t, first, b, keyring.Unknown) // a set does not change

		_, err = second.Retire(a)
		wantError(t, err, "is active: make another one active first")
		_, err = second.Promote(a)
		wantError(t, err, "is active: only a waiting one")
		_, err = second.Promote(b + 1)
		wantError(t, err, "is unknown: only a waiting one")
		_, err = second.Retire(b + 1)
		wantError(t, err, "is unknown: nothing to retire")

		time.Sleep(time.Hour)
		third, err := second.Promote(b)
		must(t, err)
		wantState(t, third, a, keyring.DecryptOnly)
		wantState(t, third, b, keyring.Active)
		if k := third.Active(); k.ID() != b || !k.Created().Equal(start.Add(time.Hour)) || !k.Since().Equal(start.Add(2*time.Hour)) {
			t.Errorf("the active key is %v, made %v, so since %v", k, k.Created(), k.Since())
		}
		_, err = third.Promote(a)
		wantError(t, err, "is decrypt only: only a waiting one")

		fourth, err := third.Retire(a)
		must(t, err)
		wantState(t, fourth, a, keyring.Retired)
		wantState(t, third, a, keyring.DecryptOnly)
		_, err = fourth.Retire(a)
		wantError(t, err, "is retired: nothing to retire")
		_, err = fourth.Promote(a)
		wantError(t, err, "is retired: only a waiting one")
		if strings.Count(string(fourth.Encode()), "secret") != 1 {
			t.Error("a retired key's secret is written")
		}
		if keys := keyring.New(fourth).Keys(); len(keys) != 1 || keys[0].ID() != b {
			t.Errorf("usable: %v, want the active one", keys)
		}

		// No browser has a cookie for longer than 400 days.
		time.Sleep(400*24*time.Hour + time.Second)
		fifth, _, err := fourth.Add()
		must(t, err)
		wantState(t, fifth, a, keyring.Unknown)
	})
}

func TestTooManyKeys(t *testing.T) {
	set, err := keyring.NewSet(), error(nil)
	for range 63 {
		set, _, err = set.Add()
		must(t, err)
	}
	if n := len(set.Encode()); n > 64<<10 {
		t.Errorf("64 keys take %d bytes, more than Parse accepts", n)
	}
	if _, err := keyring.Parse(set.Encode()); err != nil {
		t.Error(err)
	}
	_, _, err = set.Add()
	wantError(t, err, "64 keys")
}
