package main

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

// TestLogin logs in at one server and is known at another one, until it is logged out from a third browser.
func TestLogin(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sessions")
	one, two := mustServe(t, dir), mustServe(t, dir)
	here, there := newClient(t), newClient(t)

	wantPage(t, here, one, "Log in")
	post(t, here, one+"/login", url.Values{"user": {"ada"}})
	wantPage(t, here, two, "You are ada, logged in 1 time(s)")
	post(t, there, two+"/login", url.Values{"user": {"ada"}})
	wantPage(t, there, one, "You are ada, logged in 2 time(s)")
	post(t, there, one+"/logout-others", nil)
	wantPage(t, here, two, "Log in")
	wantPage(t, there, two, "You are ada, logged in 1 time(s)")
	post(t, there, two+"/logout", nil)
	wantPage(t, there, one, "Log in")
}

func mustServe(t *testing.T, dir string) (url string) {
	t.Helper()
	store, err := filestore.Open(t.Context(), dir, filestore.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	sessions, err := holdfast.New(store, holdfast.Config{Cookie: holdfast.Cookie{AllowPlainLocalhost: true}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler(sessions))
	t.Cleanup(server.Close)
	return server.URL
}

func newClient(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar}
}

func post(t *testing.T, c *http.Client, url string, form url.Values) {
	t.Helper()
	res, err := c.PostForm(url, form)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("POST %s: %s", url, res.Status)
	}
}

func wantPage(t *testing.T, c *http.Client, url, want string) {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || !strings.Contains(string(body), want) {
		t.Errorf("GET %s = %q, %v, want %q", url, body, err, want)
	}
}
