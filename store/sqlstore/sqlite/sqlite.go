// Package sqlite keeps sessions in a table of an SQLite database: one file that any number of processes on one machine
// share.
//
//	store, err := sqlite.Open(ctx, "sqlite:/var/lib/app/sessions.db")
//
// Readers never wait for writers. Writers take turns, those of one process in order and those of several by trying
// again, so that a few thousand writes a second are the most. The file must be on a local disk: the locks of network
// file systems are not good enough for SQLite. Package sqlstore says how a store in a database works, and
// docs/stores/sqlite.md has the options, statements and failures.
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"modernc.org/sqlite"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/sqlurl"
	"github.com/holdfast-sessions/holdfast/internal/storeurl"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// config is what a URL says.
type config struct {
	sqlurl.Table
	path string
	sync string
}

const wantURL = "want sqlite:/path/to/file.db[?option=value&...]"

// parse reads sqlite:/path, sqlite:path and sqlite:///path.
func parse(raw string) (*config, error) {
	scheme, rest, _ := strings.Cut(raw, ":")
	if !strings.EqualFold(scheme, "sqlite") {
		return nil, errors.New(wantURL)
	}
	path, options, _ := strings.Cut(rest, "?")
	if host, ok := strings.CutPrefix(path, "//"); ok {
		if !strings.HasPrefix(host, "/") {
			return nil, errors.New("the URL names a host; want sqlite:/path or sqlite:///path")
		}
		path = host
	}
	path, err := url.PathUnescape(path)
	if err != nil || strings.ContainsRune(path, 0) {
		return nil, errors.New("the path is malformed; write % as %25")
	}
	switch {
	case path == "":
		return nil, errors.New("the URL names no file; " + wantURL)
	case strings.HasPrefix(path, ":memory:"):
		return nil, errors.New("a database in memory is shared by nobody; the store memory: does the same")
	}
	query, err := url.ParseQuery(options)
	if err != nil {
		return nil, errors.New("the options are malformed; want name=value&name=value, other characters as %XX")
	}
	c := &config{sync: "NORMAL"}
	known := c.Table.Options(8)
	known["sync"] = func(v string) error {
		if v != "normal" && v != "full" {
			return errors.New("want normal or full")
		}
		c.sync = strings.ToUpper(v)
		return nil
	}
	if err := storeurl.Options(query, known); err != nil {
		return nil, err
	}
	c.path, err = filepath.Abs(path)
	return c, err
}

// dsn returns the name that the client library opens.
func (c *config) dsn() string {
	// A process that waits for another's lock asks again for so long; sqlstore repeats that until the deadline.
	return "file:" + (&url.URL{Path: c.path}).EscapedPath() + "?_pragma=busy_timeout(1000)&_pragma=journal_mode(WAL)" +
		"&_pragma=synchronous(" + c.sync + ")&_txlock=immediate&_dqs=false&_defensive=true"
}

// Open opens the database, which it makes, with mode 0600, if it is missing and its directory is not, and checks the
// table. It refuses a file that is a link or that others may write to. Of settings, only Logger counts.
//
//	sqlite:/path/to/file.db[?option=value&...]
func Open(ctx context.Context, url string, settings ...sqlstore.Config) (*sqlstore.Store, error) {
	c, err := parse(url)
	if err != nil {
		return nil, fmt.Errorf("sqlite store: %w", err)
	}
	if err := c.file(); err != nil {
		return nil, fmt.Errorf("sqlite store: %w", err)
	}
	connector, err := sqlite.NewConnector(c.dsn())
	if err != nil {
		return nil, fmt.Errorf("sqlite store: %w", err)
	}
	s, err := sqlstore.Open(ctx, c.dialect(), connector, c.settings(settings))
	if err != nil {
		return nil, fmt.Errorf("sqlite store %s: %w", c.path, err)
	}
	return s, nil
}

// Migrate makes what is missing of the database.
func Migrate(ctx context.Context, url string) error {
	c, err := parse(url)
	if err == nil {
		err = c.file()
	}
	if err != nil {
		return fmt.Errorf("sqlite store: %w", err)
	}
	connector, err := sqlite.NewConnector(c.dsn())
	if err == nil {
		err = sqlstore.Migrate(ctx, c.dialect(), connector, c.settings(nil))
	}
	if err != nil {
		return fmt.Errorf("sqlite store %s: %w", c.path, err)
	}
	return nil
}

// Schema returns the statements that Migrate runs.
func Schema(url string) (string, error) {
	c, err := parse(url)
	if err != nil {
		return "", fmt.Errorf("sqlite store: %w", err)
	}
	return sqlstore.Schema(c.dialect(), c.Name, ""), nil
}

func (c *config) settings(given []sqlstore.Config) sqlstore.Config {
	var s sqlstore.Config
	if len(given) > 0 {
		s.Logger = given[0].Logger
	}
	s.Table, s.SweepEvery, s.MaxConns, s.URL = c.Name, c.Sweep, c.MaxConns, "sqlite:"+c.path
	return s
}

// file makes the file if it is missing, and looks at what is there. It never opens one that is: closing it would drop
// the locks that this process has on it.
func (c *config) file() error {
	dir := filepath.Dir(c.path)
	info, err := os.Lstat(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		f, createErr := os.OpenFile(c.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		switch {
		case createErr == nil:
			if err := f.Close(); err != nil {
				return driver.Unavailable(err)
			}
		case errors.Is(createErr, fs.ErrNotExist):
			return fmt.Errorf("directory %s is missing; make it (mkdir -p '%s') or mount it", dir, dir)
		case !errors.Is(createErr, fs.ErrExist): // by another process, meanwhile
			return fmt.Errorf("%w: %w", driver.ErrReadOnly, createErr)
		}
		info, err = os.Lstat(c.path)
	}
	if err != nil {
		return driver.Unavailable(err)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return fmt.Errorf("%s is a symbolic link; give the file that it leads to", c.path)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", c.path)
	}
	if runtime.GOOS == "windows" {
		return nil // modes say nothing there
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s is writable by other users (mode %04o), who could replace sessions; fix: chmod 0600 '%s'", c.path, mode, c.path)
	}
	info, err = os.Stat(dir)
	if err != nil {
		return driver.Unavailable(err)
	}
	if mode := info.Mode(); mode.Perm()&0o022 != 0 && mode&fs.ModeSticky == 0 {
		return fmt.Errorf("directory %s is writable by other users (mode %04o), who could replace the file; fix: chmod 0700 '%s'", dir, mode.Perm(), dir)
	}
	return nil
}
