package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/transfer"
)

// TestLiveSites copies a site in use, between real stores: users change their sessions, log in, out, and out everywhere
// on the old one all the time. In the end every session that lives is on the new site in its last state, and none that
// was ended.
func TestLiveSites(t *testing.T) {
	for _, test := range []struct {
		from, to string
		records  int
	}{
		{"memory", "memory", testserver.Scale(10_000, 200_000)},
		{"memory", "redis", testserver.Scale(4_000, 200_000)},
		{"redis", "file", testserver.Scale(1_000, 100_000)},
		{"file", "redis", testserver.Scale(1_000, 100_000)},
	} {
		t.Run(test.from+" to "+test.to, func(t *testing.T) {
			from, to := openers[test.from](t), openers[test.to](t)
			seed(t, from, test.records)
			old, new := newSite(t, from, holdfast.Config{}), newSite(t, to, holdfast.Config{})

			ctx, stop := context.WithCancel(t.Context())
			var users sync.WaitGroup
			crowd := make([]*surfer, 8)
			for i := range crowd {
				crowd[i] = &surfer{site: old, name: fmt.Sprint("user-", i), live: make(map[string]int)}
				users.Go(func() {
					if err := crowd[i].surf(ctx); err != nil {
						t.Error(err)
					}
				})
			}
			path := filepath.Join(t.TempDir(), "journal")
			run := func(c transfer.Config) transfer.Result { // as a process of its own
				t.Helper()
				c.Journal = mustJournal(t, path)
				defer c.Journal.Close()
				return mustRun(t, from, to, c)
			}
			during := run(transfer.Config{Passes: 4})
			stop()
			users.Wait()
			last := run(transfer.Config{})
			t.Logf("during: %+v", during)
			t.Logf("after:  %+v", last)
			if during.Failed+last.Failed > 0 || during.Kept+last.Kept > 0 || during.EndedThere+last.EndedThere > 0 {
				t.Error("records failed, or changed in TO, where nobody was")
			}
			if !last.Settled || during.Ended == 0 || during.Copied < test.records {
				t.Error("too little was copied or ended, or it did not settle")
			}
			wantEqual(t, from, to, true)
			actions := 0
			for _, c := range crowd {
				actions += c.actions
				c.check(t, new)
			}
			if actions < 200 {
				t.Errorf("%d actions on the old site meanwhile, which proves little", actions)
			}
			again := run(transfer.Config{})
			if again.Writes != 1 || again.Copied != 0 {
				t.Errorf("copied once more: %+v, want nothing written but a probe", again)
			}
		})
	}
}

// surfer uses the old site, as one user with several browsers.
type surfer struct {
	site    *site
	name    string
	live    map[string]int // the token of each browser, and the value that was stored last
	ended   []string       // tokens that are worth nothing any more
	actions int
}

func (s *surfer) surf(ctx context.Context) error {
	// Every action is carried out to its end: what an interrupted one did would not be known.
	whole := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		if err := s.act(whole); err != nil {
			return fmt.Errorf("%s, action %d: %w", s.name, s.actions, err)
		}
		s.actions++
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(4 * time.Millisecond)):
		}
	}
	return nil
}

func (s *surfer) act(ctx context.Context) error {
	n := s.actions + 1
	var token string
	for token = range s.live { // any
		break
	}
	switch dice := rand.IntN(20); {
	case token == "" || dice < 3: // a new browser
		fresh, err := s.site.do(ctx, "", func(ctx context.Context, x *holdfast.Session) error {
			return errors.Join(value.Set(x, n), x.Login(ctx, s.name))
		})
		if err != nil {
			return err
		}
		s.live[fresh] = n
	case dice < 4: // one that never logs in
		fresh, err := s.site.do(ctx, "", func(_ context.Context, x *holdfast.Session) error { return value.Set(x, n) })
		if err != nil {
			return err
		}
		s.live[fresh] = n
	case dice < 6: // logout
		if _, err := s.site.do(ctx, token, func(ctx context.Context, x *holdfast.Session) error { return x.Logout(ctx) }); err != nil {
			return err
		}
		s.end(token)
	case dice < 8: // a new token
		fresh, err := s.site.do(ctx, token, func(ctx context.Context, x *holdfast.Session) error { return x.Renew(ctx) })
		if err != nil {
			return err
		}
		s.live[fresh] = s.live[token]
		s.end(token)
	case dice < 9 && n%5 == 0: // out everywhere
		if err := s.site.m.RevokeUser(ctx, s.name); err != nil {
			return err
		}
		for token := range s.live {
			if user, _, err := s.site.who(ctx, token); err != nil {
				return err
			} else if user == "" {
				if _, err := s.site.m.Open(ctx, mustTokenID(token)); errors.Is(err, holdfast.ErrNotFound) {
					s.end(token)
				}
			}
		}
	default:
		if _, err := s.site.do(ctx, token, func(_ context.Context, x *holdfast.Session) error { return value.Set(x, n) }); err != nil {
			return err
		}
		s.live[token] = n
	}
	return nil
}

func (s *surfer) end(token string) {
	delete(s.live, token)
	s.ended = append(s.ended, token)
}

// check finds on the new site what there was on the old one, and ends it.
func (s *surfer) check(t *testing.T, new *site) {
	t.Helper()
	for token, v := range s.live {
		user, got, err := new.who(t.Context(), token)
		if err != nil || got != v || user != "" && user != s.name {
			t.Errorf("%s: on the new site a session of %q has %d (%v), want %d", s.name, user, got, err, v)
		}
	}
	for _, token := range s.ended {
		if user, got, err := new.who(t.Context(), token); err != nil || got != 0 || user != "" {
			t.Errorf("%s: a session that was ended lives on the new site: user %q, value %d (%v)", s.name, user, got, err)
		}
	}
}

func mustTokenID(token string) driver.ID {
	id, ok := holdfast.TokenID(token)
	if !ok {
		panic("not a token")
	}
	return id
}
