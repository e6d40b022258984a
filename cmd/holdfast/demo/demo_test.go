package demo

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestControlSecret: who has found the supervisor's port can do nothing there without the secret of this run.
func TestControlSecret(t *testing.T) {
	s := &supervisor{secret: "right", apps: []*app{{name: "app-1"}}}
	h := s.controlHandler(t.Context())
	for header, want := range map[string]int{
		"":             http.StatusForbidden,
		"Bearer ":      http.StatusForbidden,
		"Bearer wrong": http.StatusForbidden,
		"right":        http.StatusForbidden,
		"Bearer right": http.StatusOK,
	} {
		for _, target := range []struct{ method, path string }{
			{"GET", "/demo/apps"}, {"POST", "/demo/apps/app-1/kill"},
		} {
			r := httptest.NewRequest(target.method, target.path, nil)
			if header != "" {
				r.Header.Set("Authorization", header)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s %s with Authorization %q: %d, want %d", target.method, target.path, header, w.Code, want)
			}
		}
	}
}

func TestGuard(t *testing.T) {
	h := guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	for host, want := range map[string]int{
		"localhost": http.StatusOK, "localhost:8080": http.StatusOK, "LOCALHOST:1": http.StatusOK,
		"127.0.0.1": http.StatusOK, "127.0.0.1:8080": http.StatusOK, "127.1.2.3": http.StatusOK,
		"[::1]": http.StatusOK, "[::1]:8080": http.StatusOK,

		"": http.StatusForbidden, "example.com": http.StatusForbidden, "example.com:8080": http.StatusForbidden,
		"localhost.example.com": http.StatusForbidden, "127.0.0.1.example.com": http.StatusForbidden,
		"10.0.0.1": http.StatusForbidden, "0.0.0.0:8080": http.StatusForbidden, "[::]": http.StatusForbidden,
		"localhost:80:80": http.StatusForbidden, "[localhost]x": http.StatusForbidden,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("Host %q: %d, want %d", host, w.Code, want)
		}
	}
}

func TestListen(t *testing.T) {
	for _, c := range []Config{
		{Listen: "0.0.0.0:0"}, {Listen: ":0"}, {Listen: "[::]:0"}, {Listen: "10.1.2.3:0"}, {Listen: "example.com:0"},
		{Listen: ""}, {Listen: "8080"}, {Listen: "127.0.0.1"},
	} {
		c.Out = io.Discard
		if l, err := listen(c); err == nil {
			_ = l.Close() // it should not be open
			t.Errorf("listen on %q succeeds", c.Listen)
		}
	}
	for _, c := range []Config{{Listen: "127.0.0.1:0"}, {Listen: "localhost:0"}, {Listen: "0.0.0.0:0", Public: true}} {
		l, err := listen(c)
		if err != nil {
			t.Errorf("listen on %q: %v", c.Listen, err)
			continue
		}
		_ = l.Close() // nothing was accepted
	}
}
