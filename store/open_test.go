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
		"sqlite": "sqlite:" + filepath.Join(t.TempDir(), "sessions.db"),
		"mysql": "mysql://" + testserver.DatabaseUser + ":" + testserver.DatabasePassword + "@" + testserver.MariaDB(t).Addr +
			"/" + testserver.Database,
		"postgres": "postgresql://" + testserver.DatabaseUser + ":" + testserver.DatabasePassword + "@" + testserver.Postgres(t).Addr +
			"/" + testserver.Database,
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
		{"", "it has no scheme (want memory:, file:/directory, redis://host:port,", true},
		{secret, "no scheme", true},
		{":" + secret + "@host", "no scheme", true},
		{"/var/lib/sessions", "no scheme", true},
		{"mongodb://ada:" + secret + "@host", `scheme "mongodb" unknown (want memory:,`, true},
		{"my redis://" + secret + "@host", "no scheme", true},
		{"memory://" + secret, "takes nothing after the colon", true},
		{"redis:" + secret, "want redis://", false},
		{"redis://ada:" + secret + "@", "no host", false},
		{"redis-sentinel://ada:" + secret + "@s1,s2", "option master is missing", false},
		{"rediss-cluster://ada:" + secret + "@n1/2", "database 0 only", false},
		{"redis://:" + secret + "#@host", "", false},
		{"file:", "no directory", false},
		{"mysql:" + secret, "want mysql://", false},
		{"mysql://ada:" + secret + "@host", "no database", false},
		{"mariadb://ada:" + secret + "/x@host/db", "%40", false},
		{"postgres://ada:" + secret + "@/db", "no host", false},
		{"postgresql://ada:" + secret + "@h1,h1/db", "given twice", false},
		{"sqlite:", "no file", false},
		{"sqlite://" + secret + "/file", "names a host", false},
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
		"redis://ada:hunter2@db:6379/1?prefix=p:":                   "redis://db:6379/1",
		"rediss://:hunter2@[::1]:6379":                              "rediss://[::1]:6379",
		"REDIS://db":                                                "redis://db",
		"mysql://ada:hunter2@h1,h2:3307,[::1]:1/db?table=t":         "mysql://h1,h2:3307,[::1]:1/db",
		"postgres://ada:hunter2@h1:1,h2:2/db":                       "postgres://h1:1,h2:2/db",
		"sqlite:/var/lib/s.db?sync=full":                            "sqlite:/var/lib/s.db",
		"redis:hunter2":                                             "redis:…",
		"redis://ada:hunter2%@db":                                   "redis:…",
		"redis://ada:hunter2#@db":                                   "redis:…",
		"hunter2":                                                   ":…",
		"redis-sentinel://ada:hunter2@s1:26379,s2,s3/0?master=main": "redis-sentinel://s1:26379,s2,s3/0",
		"rediss-cluster://:hunter2@n1,[::1]:7000":                   "rediss-cluster://n1,[::1]:7000",
		"redis-cluster://:hunter2@n1,n2:x":                          "redis-cluster:…",
		(&url.URL{Scheme: "redis", User: url.UserPassword("a", "p@/?#"), Host: "db"}).String(): "redis://db",
	} {
		if got := store.Name(rawURL); got != want {
			t.Errorf("Name(%q) = %q, want %q", rawURL, got, want)
		}
	}
}

func TestSchema(t *testing.T) {
	for rawURL, want := range map[string]string{
		"mysql://app:hunter2@h1,h2/shop":         "GRANT SELECT, INSERT, UPDATE, DELETE ON shop.holdfast_sessions TO app;",
		"mariadb://app@h/shop?engine=memory":     "ENGINE=MEMORY;",
		"postgres://app:hunter2@h/shop?table=s1": "CREATE INDEX IF NOT EXISTS s1_sweep ON s1 (sweep);",
		"sqlite:/var/lib/s.db":                   "CREATE TABLE IF NOT EXISTS holdfast_sessions_meta (",
	} {
		got, err := store.Schema(rawURL)
		if err != nil || !strings.Contains(got, want) || strings.Contains(got, "hunter2") {
			t.Errorf("Schema(%q) = %v, %q, want it to have %q", rawURL, err, got, want)
		}
	}
	path := filepath.Join(t.TempDir(), "sessions.db")
	for range 2 {
		if err := store.Migrate(t.Context(), "sqlite:"+path); err != nil {
			t.Errorf("Migrate = %v", err)
		}
	}
	for _, rawURL := range []string{"memory:", "file:/x", "redis://h", "rediss://h"} {
		_, err := store.Schema(rawURL)
		if migrateErr := store.Migrate(t.Context(), rawURL); !errors.Is(err, store.ErrNoSchema) || !errors.Is(migrateErr, store.ErrNoSchema) {
			t.Errorf("Schema(%q) = %v, Migrate = %v, want ErrNoSchema", rawURL, err, migrateErr)
		}
	}
	if _, err := store.Schema("mongodb://h"); !errors.Is(err, store.ErrURL) {
		t.Errorf("Schema of an unknown store = %v, want ErrURL", err)
	}
}
