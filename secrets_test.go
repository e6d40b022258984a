package holdfast_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/driver"
)

// locked is a buffer for several writers.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// TestNothingTellsSecrets is attack 27: logs, events, errors, answers and whatever prints a value of the package are
// searched for tokens, whole IDs, keys and values, with everything going wrong that can.
func TestNothingTellsSecrets(t *testing.T) {
	ctx := context.Background()
	for _, handler := range []func(io.Writer) slog.Handler{
		func(w io.Writer) slog.Handler {
			return slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})
		},
		func(w io.Writer) slog.Handler {
			return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})
		},
	} {
		var out locked
		logger := slog.New(handler(&out))
		say := func(v any) {
			logger.Info("said", "value", v)
			_, _ = fmt.Fprintf(&out, "%v %+v %s\n", v, v, v)
		}
		var step, fail int
		store := tapped{mustMemory(t), func(_ context.Context, c storeCall) error {
			if step++; step == fail {
				return errDown
			}
			return nil
		}}
		user := "ada\r\nlevel=ERROR msg=forged"
		secrets := []string{secret, string(testKey(1))}
		for fail = range 25 {
			step = 0
			m := mustManager(t, store, holdfast.Config{
				Logger: logger, ValueKeys: [][]byte{testKey(1)}, Header: "X-Auth-Token", URLParameter: "sid",
				OnEvent: func(_ context.Context, e holdfast.Event) { say(e) },
			})
			v := newVisitor(t, m)
			said := func(err error) {
				if err != nil {
					say(err)
				}
			}
			for n := range 6 {
				res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
					say(s)
					say(r.Context())
					defer func() {
						if e := recover(); e != nil {
							say(e)
						}
					}()
					switch n {
					case 0, 2:
						said(owner.Set(s, secret))
					case 1, 3:
						said(s.Login(r.Context(), user, holdfast.LoginOptions{Persistent: true}))
						_, err := m.List(ctx, user)
						said(err)
					case 4:
						_, err := owner.Update(r.Context(), s, func(string) (string, error) { return "", errors.New("no") })
						said(err)
						_, err = holdfast.NewField[int](owner.Name()).Get(s)
						said(err)
						said(m.RevokeUser(ctx, user, s.ID()))
						panic("boom")
					case 5:
						said(s.Logout(r.Context()))
					}
					say(s)
				})
				if tok := v.token(); tok != "" {
					id := holdfast.MustTokenID(tok)
					secrets = append(secrets, tok, id.Hex(), fmt.Sprintf("%x", id[:]), string(id[:]), listOf(id))
				}
				body, _ := io.ReadAll(res.Body)
				_, _ = out.Write(body)
			}
			for _, token := range malformed {
				r := v.request(ctx)
				r.Header.Set("Cookie", cookieName+"="+strings.Repeat("m", 10)+token)
				v.visitWith(r, func(http.ResponseWriter, *http.Request, *holdfast.Session) {})
			}
		}
		text := out.b.String()
		for _, s := range secrets {
			if strings.Contains(text, s) {
				i := strings.Index(text, s)
				t.Errorf("found %q in: %.200q", s, text[max(0, i-100):])
				break
			}
		}
		if len(text) < 1000 {
			t.Error("nothing was written")
		}
	}
}

// listOf is an ID as encoding/json writes an array.
func listOf(id driver.ID) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(id[:]), "[]"), " ", ",")
}

// TestUserNamesInLogs is part of attack 27: a line break in a user name starts no line of its own in the Manager's log.
func TestUserNamesInLogs(t *testing.T) {
	var out locked
	down := false
	store := tapped{mustMemory(t), func(_ context.Context, c storeCall) error {
		if down && c.id == holdfast.UserID("ada\r\nforged") {
			return errDown
		}
		return nil
	}}
	m := mustManager(t, store, holdfast.Config{Logger: slog.New(slog.NewTextHandler(&out, nil))})
	v := newVisitor(t, m)
	v.login("ada\r\nforged")
	down = true
	v.logout() // ended, but it stays listed, which is logged
	if text := out.b.String(); strings.Count(text, "\n") != 1 || strings.Contains(text, "\nforged") || !strings.Contains(text, "stays listed") {
		t.Errorf("logged %q", text)
	}
}

// TestTokensAreUnique is the first half of attack 39.
func TestTokensAreUnique(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	seen := make(map[string]bool, n)
	for range n {
		token, err := holdfast.NewToken(holdfast.DefaultRand)
		must(t, err)
		if len(token) != 43 || seen[token] {
			t.Fatalf("token of %d characters, again: %v", len(token), seen[token])
		}
		seen[token] = true
	}
}

// TestRandomSourceFails is the second half of attack 39: no weak token, but an error; nothing is stored or sent.
func TestRandomSourceFails(t *testing.T) {
	errDry := errors.New("entropy pool is dry")
	for name, source := range map[string]func() io.Reader{
		"error": func() io.Reader { return iotest.ErrReader(errDry) },
		"short": func() io.Reader { return io.MultiReader(bytes.NewReader(make([]byte, 31)), iotest.ErrReader(errDry)) },
		"ends":  func() io.Reader { return bytes.NewReader(make([]byte, 31)) },
	} {
		for what, f := range map[string]func(*http.Request, *holdfast.Session) error{
			"set": func(r *http.Request, s *holdfast.Session) error { must(t, visits.Set(s, 1)); return nil },
			"save": func(r *http.Request, s *holdfast.Session) error {
				must(t, visits.Set(s, 1))
				return s.Save(r.Context())
			},
			"update": func(r *http.Request, s *holdfast.Session) error {
				_, err := visits.Update(r.Context(), s, func(n int) (int, error) { return n + 1, nil })
				return err
			},
			"login": func(r *http.Request, s *holdfast.Session) error { return s.Login(r.Context(), "ada") },
		} {
			store := mustMemory(t)
			m := mustManager(t, store, holdfast.Config{Rand: source(), URLParameter: "sid"})
			v := newVisitor(t, m)
			res := v.visit(func(w http.ResponseWriter, r *http.Request, s *holdfast.Session) {
				err := f(r, s)
				if what != "set" && err == nil {
					t.Errorf("%s, random source %s: no error", what, name)
				}
				if got := m.URL(r, "/a"); got != "/a" {
					t.Errorf("%s, random source %s: URL = %q", what, name, got)
				}
				if err != nil {
					m.Error(w, r, err)
				}
			})
			wantStatus(t, res, 500)
			wantCookies(t, res, 0)
			if n := len(records(t, store)); n != 0 {
				t.Errorf("%s, random source %s: %d records", what, name, n)
			}
		}
	}
}
