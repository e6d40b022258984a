package keyring_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-sessions/holdfast/keyring"
)

var quiet = slog.New(slog.DiscardHandler)

// mustReplace puts a set into a file as a deployment does.
func mustReplace(t testing.TB, path string, b []byte) {
	t.Helper()
	must(t, os.WriteFile(path+".new", b, 0o600))
	must(t, os.Rename(path+".new", path))
}

func TestReload(t *testing.T) {
	path, first := mustCreate(t)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // mu guards reports, which one goroutine writes and another reads
		var reports []error
		reported := func() []error { mu.Lock(); defer mu.Unlock(); return slices.Clone(reports) }
		var log strings.Builder
		ring, err := keyring.Config{
			OnReload: func(err error) { mu.Lock(); defer mu.Unlock(); reports = append(reports, err) },
			Logger:   slog.New(slog.NewTextHandler(&log, nil)),
		}.Open(t.Context(), "file:"+path)
		must(t, err)
		old := ring.Active()
		aead := old.AEAD("x")

		second, k, err := first.Add()
		must(t, err)
		mustReplace(t, path, second.Encode())
		time.Sleep(5*time.Second - 1)
		synctest.Wait()
		if _, state := ring.Find(k.ID()); state != keyring.Unknown {
			t.Errorf("after 5 s - 1 ns the new key is %v", state)
		}
		time.Sleep(1)
		synctest.Wait()
		if _, state := ring.Find(k.ID()); state != keyring.Waiting || ring.Active().ID() != old.ID() {
			t.Errorf("after 5 s the new key is %v, the active one %v", state, ring.Active())
		}
		if ring.Active().AEAD("x") != aead {
			t.Error("what was derived before is not used again")
		}
		if st := ring.Stats(); st != (keyring.Stats{Reloads: 1}) || len(reported()) != 1 || reported()[0] != nil {
			t.Errorf("%+v, reported %v, want 1 reload", st, reported())
		}

		// Never half a set, and never none: each of these leaves the old keys.
		good := string(second.Encode())
		failures, said := uint64(0), 1
		for name, spoil := range map[string]func(){
			"cut":      func() { mustReplace(t, path, []byte(good[:len(good)/2])) },
			"empty":    func() { mustReplace(t, path, nil) },
			"a byte":   func() { mustReplace(t, path, []byte(strings.Replace(good, `secret": "`, `secret": "A`, 1))) },
			"none":     func() { must(t, os.Remove(path)) },
			"readable": func() { mustReplace(t, path, []byte(good)); must(t, os.Chmod(path, 0o644)) },
			"unknown":  func() { mustReplace(t, path, []byte(strings.Replace(good, `n": 1`, `n": 2`, 1))) },
		} {
			spoil()
			time.Sleep(15 * time.Second)
			synctest.Wait()
			failures, said = failures+3, said+1
			if st := ring.Stats(); st.Failures != failures || st.Reloads != 1 || len(reported()) != said || reported()[said-1] == nil {
				t.Errorf("%s: %+v, reported %d times, want %d failures and %d reports", name, st, len(reported()), failures, said)
			}
			if _, state := ring.Find(k.ID()); state != keyring.Waiting || ring.Active().ID() != old.ID() || len(ring.Keys()) != 2 {
				t.Errorf("%s: the keys are not those of before", name)
			}
		}
		mustReplace(t, path, []byte(good))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if st := ring.Stats(); st.Failures != failures || st.Reloads != 1 || len(reported()) != said {
			t.Errorf("with the file of before: %+v, %d reports", st, len(reported()))
		}
		third, err := second.Promote(k.ID())
		must(t, err)
		mustReplace(t, path, third.Encode())
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if ring.Active().ID() != k.ID() || old.State() != keyring.Active {
			t.Errorf("active is %v; the key that was asked for before has changed to %v", ring.Active(), old.State())
		}
		must(t, ring.Close())
		must(t, ring.Close())
		must(t, os.Remove(path))
		time.Sleep(time.Minute)
		if st := ring.Stats(); st.Failures != failures || ring.Active().ID() != k.ID() {
			t.Errorf("after Close: %+v", st)
		}
		for _, want := range []string{`msg="key ring reloaded" source=file:`, `msg="key ring not reloaded: the keys that were read last stay"`, "readable again"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log has no %s:\n%s", want, log.String())
			}
		}
		if n := strings.Count(log.String(), "not reloaded"); n != said-1 {
			t.Errorf("%d lines of failures, want %d", n, said-1)
		}
	})
}

// Kubernetes replaces a link to a directory that the file's link goes through.
func TestReloadThroughLinks(t *testing.T) {
	dir := t.TempDir()
	a, b := keyring.NewSet(), keyring.NewSet()
	for name, set := range map[string]*keyring.Set{"a": a, "b": b} {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		must(t, keyring.Create(filepath.Join(dir, name, "keys"), set))
	}
	must(t, os.Symlink("a", filepath.Join(dir, "data")))
	must(t, os.Symlink("data/keys", filepath.Join(dir, "keys")))
	synctest.Test(t, func(t *testing.T) {
		ring, err := keyring.Config{Logger: quiet, Every: time.Second}.Open(t.Context(), "file:"+filepath.Join(dir, "keys"))
		must(t, err)
		defer ring.Close()
		must(t, os.Symlink("b", filepath.Join(dir, "new")))
		must(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "data")))
		time.Sleep(time.Second)
		synctest.Wait()
		if ring.Active().ID() != b.Active().ID() {
			t.Error("not reloaded")
		}
	})
}

// Attack 12: three servers get each step of a rotation at different times, while they use it: what one seals every other
// one opens, and in the end the newest key seals. Attack 11: an unknown and a retired key open nothing, a waiting one does.
func TestStaggeredRotation(t *testing.T) {
	path, set := mustCreate(t)
	synctest.Test(t, func(t *testing.T) {
		var rings [3]*keyring.Ring
		var files [3]string
		for i := range rings {
			files[i] = fmt.Sprintf("%s.%d", path, i)
			must(t, keyring.Create(files[i], set))
			ring, err := keyring.Config{Logger: quiet}.Open(t.Context(), "file:"+files[i])
			must(t, err)
			defer ring.Close()
			rings[i] = ring
		}
		type value struct {
			key    uint32
			sealed []byte
		}
		const sessions = 10_000
		values := make([]value, sessions)
		seal := func(r *keyring.Ring) value {
			k := r.Active()
			return value{k.ID(), k.AEAD("x").Seal(nil, []byte("session"), nil)}
		}
		lost := 0
		visit := func(i int, r *keyring.Ring) {
			v := values[i]
			k, state := r.Find(v.key)
			if !state.Usable() {
				lost++
				return
			}
			if _, err := k.AEAD("x").Open(nil, v.sealed, nil); err != nil {
				lost++
				return
			}
			if state == keyring.DecryptOnly {
				values[i] = seal(r)
			}
		}
		for i := range values {
			values[i] = seal(rings[i%3])
		}
		// Each step reaches a server 10 s after the one before, and all of them before the next step.
		spread := func(next *keyring.Set, err error) {
			t.Helper()
			must(t, err)
			set = next
			for server := range rings {
				mustReplace(t, files[server], set.Encode())
				time.Sleep(10 * time.Second)
				synctest.Wait()
				for i := range values {
					if i%4 == server {
						visit(i, rings[(i+server)%3])
					}
				}
			}
			for i := range values {
				visit(i, rings[(i+1)%3])
			}
		}
		first := set.Active()
		early := seal(rings[0])
		with, k, err := set.Add()
		spread(with, err)
		waiting, _ := rings[2].Find(k.ID())
		if p, err := waiting.AEAD("x").Open(nil, k.AEAD("x").Seal(nil, []byte("p"), nil), nil); err != nil || string(p) != "p" {
			t.Errorf("a waiting key opened %q, %v", p, err)
		}
		spread(set.Promote(k.ID()))
		spread(set.Retire(first.ID()))
		if lost != 0 {
			t.Errorf("%d of %d visits could not open", lost, 16*sessions)
		}
		for _, v := range values {
			if v.key != k.ID() {
				t.Fatal("not sealed with the newest key")
			}
		}
		for _, r := range rings {
			if _, state := r.Find(early.key); state != keyring.Retired {
				t.Errorf("the first key is %v", state)
			}
			if _, state := r.Find(early.key + 1); state != keyring.Unknown {
				t.Errorf("no key is %v", state)
			}
		}
	})
}

// Requests go on while keys change.
func TestConcurrentReload(t *testing.T) {
	path, set := mustCreate(t)
	ring, err := keyring.Config{Logger: quiet, Every: time.Millisecond}.Open(t.Context(), "file:"+path)
	must(t, err)
	defer ring.Close()
	var stop atomic.Bool
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for !stop.Load() {
				k := ring.Active()
				sealed := k.AEAD("x").Seal(nil, []byte("p"), nil)
				found, state := ring.Find(k.ID())
				if _, err := found.AEAD("x").Open(nil, sealed, nil); err != nil || !state.Usable() || len(ring.Keys()) == 0 {
					t.Errorf("opened with a key that is %v: %v", state, err)
					return
				}
			}
		})
	}
	for range 20 {
		set = mustRotate(t, set)
		mustReplace(t, path, set.Encode())
		for deadline := time.Now().Add(30 * time.Second); ring.Active().ID() != set.Active().ID(); {
			if time.Now().After(deadline) {
				t.Fatal("not reloaded")
			}
			runtime.Gosched()
		}
	}
	stop.Store(true)
	all.Wait()
}

func TestEnvironment(t *testing.T) {
	set := keyring.NewSet()
	t.Setenv("TEST_KEYS", string(set.Encode()))
	ring, err := keyring.Open(t.Context(), "env:TEST_KEYS")
	must(t, err)
	defer ring.Close()
	if ring.Active().ID() != set.Active().ID() || ring.Source() != "env:TEST_KEYS" {
		t.Errorf("active is %v, of %s", ring.Active(), ring.Source())
	}
	t.Setenv("TEST_KEYS", "default")
	_, err = keyring.Open(t.Context(), "env:TEST_KEYS")
	wantError(t, err, "key ring env:TEST_KEYS: it is not a key ring")
	t.Setenv("TEST_KEYS", "")
	_, err = keyring.Open(t.Context(), "env:TEST_KEYS")
	wantError(t, err, "it is empty")
	_, err = keyring.Open(t.Context(), "env:TEST_NO_KEYS")
	wantError(t, err, "it is not set: set it to the content of a key ring file")
}

func TestURL(t *testing.T) {
	set := keyring.NewSet()
	var answer atomic.Value
	answer.Store(func(w http.ResponseWriter) { _, _ = w.Write(set.Encode()) })
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "ada" || pass != "hunter2" || r.URL.RawQuery != "q=hunter2" {
			w.WriteHeader(401)
			return
		}
		answer.Load().(func(http.ResponseWriter))(w)
	})
	plain, tls := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer plain.Close()
	defer tls.Close()
	at := func(url string) string { return strings.Replace(url, "://", "://ada:hunter2@", 1) + "/keys?q=hunter2" }

	for _, test := range []struct {
		url    string
		client *http.Client
	}{{plain.URL, nil}, {tls.URL, tls.Client()}} {
		reports := make(chan error, 100)
		ring, err := keyring.Config{Every: 5 * time.Millisecond, Client: test.client, Logger: quiet, OnReload: func(err error) { reports <- err }}.Open(t.Context(), at(test.url))
		must(t, err)
		next := func() error {
			select {
			case err := <-reports:
				return err
			case <-time.After(30 * time.Second):
				t.Fatal("nothing was reported")
				return nil
			}
		}
		next2 := mustRotate(t, set)
		answer.Store(func(w http.ResponseWriter) { _, _ = w.Write(next2.Encode()) })
		must(t, next())
		if ring.Active().ID() != next2.Active().ID() {
			t.Error("not reloaded")
		}
		for _, bad := range []struct {
			answer func(http.ResponseWriter)
			want   string
		}{
			{func(w http.ResponseWriter) { w.WriteHeader(500) }, "it answers 500 Internal Server Error, want 200 OK"},
			{func(w http.ResponseWriter) { w.WriteHeader(204) }, "it answers 204 No Content"},
			{func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>sign in</html>") }, "it is not a key ring"},
			{func(w http.ResponseWriter) { _, _ = w.Write(make([]byte, 1<<20)) }, "longer than 65536 bytes"},
			{func(w http.ResponseWriter) { panic(http.ErrAbortHandler) }, "EOF"},
		} {
			answer.Store(bad.answer)
			err := next()
			wantError(t, err, bad.want)
			wantError(t, err, "key ring "+test.url+"/keys: ")
			if strings.Contains(err.Error(), "hunter2") || ring.Active().ID() != next2.Active().ID() {
				t.Errorf("%v; active is %v", err, ring.Active())
			}
		}
		answer.Store(func(w http.ResponseWriter) { _, _ = w.Write(set.Encode()) })
		must(t, next())
		must(t, ring.Close())
	}

	// A redirect could lead anywhere.
	answer.Store(func(w http.ResponseWriter) { w.Header().Set("Location", "/other?q=hunter2"); w.WriteHeader(302) })
	_, err := keyring.Open(t.Context(), at(plain.URL))
	wantError(t, err, "a redirect, which is not followed")
	_, err = keyring.Open(t.Context(), plain.URL+"/keys")
	wantError(t, err, "it answers 401")
	_, err = keyring.Open(t.Context(), at(tls.URL)) // signed by nobody that is known
	wantError(t, err, "certificate")
	plain.Close()
	_, err = keyring.Open(t.Context(), at(plain.URL))
	wantError(t, err, "refused")
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error shows the password: %v", err)
	}
}

func TestBadURLs(t *testing.T) {
	for url, want := range map[string]string{
		"":                                "no scheme: want file:/path, env:NAME or https://host/path",
		"/etc/keys":                       "no scheme",
		"ftp://ada:hunter2@h/keys":        `scheme "ftp" unknown: want file:/path`,
		"http://ada:hunter2@db.example/k": "http:// would show the keys to the network: use https://",
		"http://127.0.0.1.example/k":      "would show the keys",
		"https:":                          "malformed",
		"https:///k":                      "malformed",
		"https://h:hunter2/k":             "malformed",
		"https://h/k#hunter2":             "write # in the URL as %23",
		"file:":                           "not followed by a path",
		"file://etc/keys":                 "followed by a host: write file:///path",
		"file:/k?mode=0644":               "no options",
		"file:/%zz":                       "not followed by a path",
		"file:/a%00b":                     "not followed by a path",
		"env:":                            "name of an environment variable",
		"env://NAME":                      "name of an environment variable",
	} {
		_, err := keyring.Open(t.Context(), url)
		if wantError(t, err, want); err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows the password: %v", url, err)
		}
	}
	path, set := mustCreate(t)
	odd := filepath.Join(filepath.Dir(path), "50% #1?")
	must(t, os.Rename(path, odd))
	ring, err := keyring.Open(t.Context(), "file://"+strings.NewReplacer("%", "%25", "#", "%23", "?", "%3F").Replace(odd))
	if err != nil || ring.Active().ID() != set.Active().ID() {
		t.Fatal(errors.Join(err, ring.Close()))
	}
	must(t, ring.Close())
}
