package store_test

import (
	"errors"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store"
)

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sessions")
	for name, rawURL := range map[string]string{
		"memory": "memory:",
		"file":   "file:" + dir,
		"redis":  "REDIS://" + testserver.Redis(t).Addr + "?prefix=test:",

		"memcached": "Memcached://" + testserver.Memcached(t).Addr + "?prefix=test:",
	} {
		t.Run(name, func(t *testing.T) {
			s, err := store.Open(t.Context(), rawURL)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if d := s.(driver.Describer).Describe(); d.Name != name {
				t.Errorf("Open(%q) opened %s", rawURL, d.Name)
			}
			if _, err := s.Load(t.Context(), driver.ID{}); !errors.Is(err, driver.ErrNotFound) {
				t.Errorf("Load from it = %v, want ErrNotFound", err)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	const secret = "hunter2"
	tests := []struct {
		url     string
		want    string
		unknown bool // ErrURL
	}{
		{"", "it has no scheme (want memory:, file:/directory, redis://host:port, rediss://host:port or memcached://host:port,host:port)", true},
		{secret, "no scheme", true},
		{":" + secret + "@host", "no scheme", true},
		{"/var/lib/sessions", "no scheme", true},
		{"mongodb://ada:" + secret + "@host", `scheme "mongodb" unknown (want memory:,`, true},
		{"my redis://" + secret + "@host", "no scheme", true},
		{"memory://" + secret, "takes nothing after the colon", true},
		{"redis:" + secret, "want redis://", false},
		{"redis://ada:" + secret + "@", "no host", false},
		{"redis://:" + secret + "#@host", "", false},
		{"file:", "no directory", false},
	}
	for _, test := range tests {
		s, err := store.Open(t.Context(), test.url)
		if err == nil {
			_ = s.Close() // it should not be open
			t.Errorf("Open(%q) succeeds", test.url)
			continue
		}
		if errors.Is(err, store.ErrURL) != test.unknown || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Open(%q) = %v, want %q, ErrURL: %v", test.url, err, test.want, test.unknown)
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("Open(%q) shows the password: %v", test.url, err)
		}
	}
}

func TestName(t *testing.T) {
	for rawURL, want := range map[string]string{
		"memory:":                   "memory:",
		"file:sessions":             "file:sessions",
		"file:/var/lib/s?sync=data": "file:/var/lib/s",
		"file:///var/lib/s":         "file:///var/lib/s",
		"redis://ada:hunter2@db:6379/1?prefix=p:": "redis://db:6379/1",
		"rediss://:hunter2@[::1]:6379":            "rediss://[::1]:6379",
		"REDIS://db":                              "redis://db",
		"redis:hunter2":                           "redis:…",
		"redis://ada:hunter2%@db":                 "redis:…",
		"redis://ada:hunter2#@db":                 "redis:…",
		"hunter2":                                 ":…",
		(&url.URL{Scheme: "redis", User: url.UserPassword("a", "p@/?#"), Host: "db"}).String(): "redis://db",
	} {
		if got := store.Name(rawURL); got != want {
			t.Errorf("Name(%q) = %q, want %q", rawURL, got, want)
		}
	}
}
