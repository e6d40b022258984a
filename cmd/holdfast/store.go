package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store"
	"github.com/holdfast-sessions/holdfast/store/filestore"
)

// storeCmd is the commands that work with a store.
type storeCmd struct {
	Check   checkCmd   `cmd:"" help:"Prove what a live store guarantees, and measure it."`
	Stat    statCmd    `cmd:"" help:"Say how much a store keeps."`
	GC      gcCmd      `cmd:"" name:"gc" help:"Remove now what has expired."`
	Migrate migrateCmd `cmd:"" help:"Make or update the tables of a store in a database, or print how."`
	Copy    copyCmd    `cmd:"" help:"Move live sessions from one store to another."`
}

// openExisting opens a store as applications do, and leaves behind no directory or file that was not there.
func openExisting(ctx context.Context, command, rawURL string) (driver.Store, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	path := pathOf(rawURL)
	isNew := path != "" && missing(path)
	if isNew && schemeOf(rawURL) == "sqlite" {
		return nil, fmt.Errorf("store %s: %s does not exist: make it with holdfast store migrate", command, path)
	}
	if isNew && !missing(filepath.Dir(path)) { // otherwise Open says what is missing, and makes nothing
		return nil, fmt.Errorf("store %s: %s does not exist: make it with mkdir -m 700, on the disk that is to keep the sessions", command, path)
	}
	return store.Open(ctx, rawURL)
}

// pathOf returns the directory or file of a store that is one, or "".
func pathOf(rawURL string) string {
	switch base, _, _ := strings.Cut(rawURL, "?"); schemeOf(rawURL) {
	case "file":
		path, _, err := filestore.ParseURL(rawURL)
		if err != nil {
			return ""
		}
		return path
	case "sqlite":
		_, path, _ := strings.Cut(base, ":")
		return strings.TrimPrefix(path, "//")
	}
	return ""
}

func schemeOf(rawURL string) string {
	scheme, _, _ := strings.Cut(rawURL, ":")
	return strings.ToLower(scheme)
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func describe(s driver.Store) driver.Description {
	if d, ok := s.(driver.Describer); ok {
		return d.Describe()
	}
	return driver.Description{Name: "unknown"}
}

type migrateCmd struct {
	URL   string `arg:"" name:"url" help:"The store: mysql://, postgres:// or sqlite:."`
	Print bool   `help:"Print the statements, and the rights that the application needs, and change nothing."`
}

func (migrateCmd) Help() string {
	return `Makes the tables that are missing, as the user in the URL, and checks those that are there. It can be run at any time, also
while the store is used. Stores that are not in a database need none.

Where the application's user may not make tables, have somebody run it who may, or give them what --print prints.

Examples:

  holdfast store migrate 'mysql://admin:secret@db1/shop'
  holdfast store migrate --print 'postgres://app@db1/shop?table=shop_sessions' > sessions.sql
  holdfast store migrate sqlite:/var/lib/shop/sessions.db`
}

func (c migrateCmd) Run(ctx context.Context) error {
	var err error
	if c.Print {
		var statements string
		if statements, err = store.Schema(c.URL); err == nil {
			_, err = fmt.Print(statements)
		}
	} else if err = store.Migrate(ctx, c.URL); err == nil {
		_, err = fmt.Printf("%s is ready\n", store.Name(c.URL))
	}
	if errors.Is(err, store.ErrNoSchema) {
		fmt.Fprintf(os.Stderr, "%v\n", err)
		return nil
	}
	return err
}

type gcCmd struct {
	URL string `arg:"" name:"url" help:"The store: ${stores}."`
	output
}

func (gcCmd) Help() string {
	return `Removes at once what the store would remove in time: records that have expired, and what killed processes left behind. It
works in small portions that hold up no request for long. Sessions that live are not touched. Redis and Memcached remove
what has expired by themselves.

Examples:

  holdfast store gc file:/var/lib/shop/sessions
  holdfast store gc 'postgres://app@db1/shop' -o json`
}

func (c gcCmd) Run(ctx context.Context) error {
	s, err := openExisting(ctx, "gc", c.URL)
	if err != nil {
		return err
	}
	defer s.Close()
	result := struct {
		Store   string `json:"store"`
		Removed int    `json:"removed"`
		Itself  bool   `json:"by_itself"` // the store needs no gc
	}{Store: store.Name(c.URL)}
	sweeper, ok := s.(driver.Sweeper)
	if !ok {
		result.Itself = true
		if c.json() {
			return printJSON(os.Stdout, result)
		}
		_, err := fmt.Printf("%s removes what has expired by itself: nothing to do\n", describe(s).Name)
		return err
	}
	total := int64(-1)
	if stater, ok := s.(driver.Stater); ok {
		if st, err := stater.Stat(ctx); err == nil {
			total = st.Expired
		}
	}
	p := newProgress("removed")
	var swept error
	result.Removed, swept = sweeper.Sweep(ctx, func(n int) { p.set(int64(n), total, "") })
	p.end()
	if c.json() {
		err = printJSON(os.Stdout, result)
	} else {
		_, err = fmt.Printf("%d removed\n", result.Removed)
	}
	if swept != nil {
		return fmt.Errorf("store gc: %w", swept)
	}
	return err
}
