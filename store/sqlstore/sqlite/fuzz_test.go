package sqlite_test

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/store/sqlstore/sqlite"
)

// FuzzURL proves that whatever a URL says, it is refused or names one file, and that no part of the path is taken for a
// setting of the client library.
func FuzzURL(f *testing.F) {
	for _, raw := range []string{
		"sqlite:/a/b.db", "sqlite:///a", "sqlite:a?table=t&sweep=never&sync=full", "sqlite::memory:", "sqlite:%3F_pragma=journal_mode(OFF)",
		"sqlite:a%23b", "sqlite:%2500", "sqlite:", "", "SQLITE:a%2f..%2fb",
	} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		path, _, dsn, err := sqlite.Parse(raw)
		if err != nil {
			return
		}
		if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
			t.Errorf("%q: file %q", raw, path)
		}
		name, settings, _ := strings.Cut(strings.TrimPrefix(dsn, "file:"), "?")
		got, err := url.PathUnescape(name)
		if err != nil || got != path || strings.Count(settings, "_pragma=") != 3 || strings.Contains(settings, "#") || strings.Contains(name, "#") {
			t.Errorf("%q: the library is given %q for file %q", raw, dsn, path)
		}
	})
}
