// Package testsql has the tests that the stores in databases share: what each must do beyond the contract that storetest
// proves, with what the server itself says of it.
package testsql

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
)

// Table is the table that the tests of this package use.
const Table = "holdfast_sessions"

// Database is one to test a store on.
type Database struct {
	// Open opens a store on Table with the options, "&name=value" each.
	Open func(t testing.TB, options string) *sqlstore.Store
	// Admin is a connection of another client, which may do everything.
	Admin *sql.DB
	// Fill is a statement that adds %[1]d rows that expire at %[2]d and have sweep %[3]d.
	Fill string
	// Usual is how many rows CleanUp removes if not told to soak. 0: 5,000.
	Usual int
	// Deadlocks and LockWaits return the server's counters. They may be nil.
	Deadlocks, LockWaits func(t testing.TB) int64
	// Deletes returns how many statements removed rows of Table and how many rows they removed, as the server counts. It may
	// be nil.
	Deletes func(t testing.TB) (statements, rows int64)
}

// ID returns the ID that tests know as number n.
func ID(n int) (id driver.ID) {
	id[0] = 0xee
	binary.BigEndian.PutUint64(id[24:], uint64(n))
	return id
}

// Record returns a record of a user that lives for an hour.
func Record(user string, fields ...string) driver.Record {
	now := time.Now().Truncate(time.Millisecond)
	r := driver.Record{User: user, Created: now, Seen: now, Expires: now.Add(time.Hour), Revision: driver.NewRevision(0)}
	for i := 0; i < len(fields); i += 2 {
		r.Fields = r.Fields.With(Set(fields[i], fields[i+1]))
	}
	return r
}

// Set returns a change.
func Set(name, value string) driver.Change { return driver.Change{Name: name, Value: []byte(value)} }

// After returns the record that replaces r, with the changes.
func After(r driver.Record, changes ...driver.Change) driver.Record {
	r.Fields = r.Fields.With(changes...)
	r.Revision = driver.NewRevision(r.Revision)
	return r
}

// MustSave saves.
func MustSave(t testing.TB, s driver.Store, id driver.ID, rec driver.Record, prev uint64) {
	t.Helper()
	if err := s.Save(t.Context(), id, rec, prev); err != nil {
		t.Fatalf("Save = %v", err)
	}
}

// WantStored checks that the store has rec.
func WantStored(t testing.TB, s driver.Store, id driver.ID, want driver.Record) {
	t.Helper()
	got, err := s.Load(t.Context(), id)
	if err != nil {
		t.Errorf("Load = %v", err)
		return
	}
	if got.User != want.User || got.Revision != want.Revision || !got.Seen.Equal(want.Seen) || !got.Expires.Equal(want.Expires) ||
		!got.Created.Equal(want.Created) || !got.Fields.Equal(want.Fields) {
		t.Errorf("Load = %+v, want %+v", got, want)
	}
}

// MustExec runs a statement.
func MustExec(t testing.TB, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%.200s: %v", query, err)
	}
}

// MustInt returns the number that a statement returns.
func MustInt(t testing.TB, db *sql.DB, query string, args ...any) (n int64) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatalf("%.200s: %v", query, err)
	}
	return n
}

// Eventually waits until ok, or fails the test.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after 30s: %s", what)
		}
	}
}

// WantOpenError checks the error of Open.
func WantOpenError(t testing.TB, url string, err error, want string, unavailable bool) {
	t.Helper()
	if err == nil {
		t.Errorf("Open(%s) succeeds, want %q", url, want)
		return
	}
	message := err.Error()
	if !strings.Contains(message, want) {
		t.Errorf("Open(%s) = %v, want %q", url, err, want)
	}
	if errors.Is(err, driver.ErrUnavailable) != unavailable {
		t.Errorf("Open(%s) = %v, ErrUnavailable: %v, want %v", url, err, !unavailable, unavailable)
	}
	for _, secret := range []string{"s3cret", "hunter2", "wr0ng"} {
		if strings.Contains(message, secret) {
			t.Errorf("Open(%s) shows a password: %v", url, err)
		}
	}
}

// Calls are the calls of a request, each with what it is to return.
type Call struct {
	Name string
	Do   func(ctx context.Context) error
	Want error
	Kind string // of statement: select, insert, update, delete
}

// Calls returns every kind of call on s, in an order that makes sense once.
func Calls(s *sqlstore.Store) []Call {
	id := ID(1)
	rec := Record("ada", "a", "1")
	next := After(rec, Set("a", "2"))
	lost := After(rec, Set("b", "3"))
	touched := After(next)
	touched.Seen = touched.Seen.Add(time.Second)
	load := func(ctx context.Context) error { _, err := s.Load(ctx, id); return err }
	return []Call{
		{"load, absent", load, driver.ErrNotFound, "select"},
		{"touch, absent", func(ctx context.Context) error { return s.Touch(ctx, id, touched, next.Revision) }, driver.ErrNotFound, "update"},
		{"save over absent", func(ctx context.Context) error { return s.Save(ctx, id, next, rec.Revision) }, driver.ErrConflict, "update"},
		{"create", func(ctx context.Context) error { return s.Save(ctx, id, rec, 0) }, nil, "insert"},
		{"create, lost", func(ctx context.Context) error { return s.Save(ctx, id, lost, 0) }, driver.ErrConflict, "insert"},
		{"load", load, nil, "select"},
		{"save", func(ctx context.Context) error { return s.Save(ctx, id, next, rec.Revision) }, nil, "update"},
		{"save, lost", func(ctx context.Context) error { return s.Save(ctx, id, lost, rec.Revision) }, driver.ErrConflict, "update"},
		{"touch", func(ctx context.Context) error { return s.Touch(ctx, id, touched, next.Revision) }, nil, "update"},
		{"touch, lost", func(ctx context.Context) error { return s.Touch(ctx, id, touched, next.Revision) }, driver.ErrConflict, "update"},
		{"delete", func(ctx context.Context) error { return s.Delete(ctx, id) }, nil, "delete"},
		{"delete, absent", func(ctx context.Context) error { return s.Delete(ctx, id) }, nil, "delete"},
	}
}

// Quotes is attack 6: what SQL gives a meaning to stays plain bytes, in names, values, users and IDs.
func Quotes(t *testing.T, db Database) {
	s := db.Open(t, "&sweep=never")
	hostile := []string{"'", `"`, "`", `\`, `\'`, "' OR 1=1 -- ", `'; DROP TABLE holdfast_sessions; -- `, "%", "_", "\x00", "\x1a", "$1", "?", "{table}", ":id",
		"/*!50000 x */", "\xbf'", "\xff\xfe", "E'\\\\'", "$$", "0x27", "\r\n", strings.Repeat("'", 1000)}
	var ids []driver.ID
	for i, h := range hostile {
		id := ID(i)
		copy(id[:], h)
		ids = append(ids, id)
		rec := Record(h, h, h)
		MustSave(t, s, id, rec, 0)
		next := After(rec, Set("x"+h, h))
		MustSave(t, s, id, next, rec.Revision)
		touched := After(next)
		touched.Seen = touched.Seen.Add(time.Second)
		if err := s.Touch(t.Context(), id, touched, next.Revision); err != nil {
			t.Errorf("%q: Touch = %v", h, err)
		}
		WantStored(t, s, id, touched)
	}
	if n := MustInt(t, db.Admin, "SELECT COUNT(*) FROM "+Table); n != int64(len(hostile)) {
		t.Errorf("%d rows, want %d", n, len(hostile))
	}
	for i, id := range ids {
		if err := s.Delete(t.Context(), id); err != nil {
			t.Errorf("Delete = %v", err)
		}
		if n := MustInt(t, db.Admin, "SELECT COUNT(*) FROM "+Table); n != int64(len(hostile)-i-1) {
			t.Errorf("%d rows after %d deletes, want %d", n, i+1, len(hostile)-i-1)
		}
	}
}

// Foreign proves that bytes that are no record of this release are told apart and left alone, and that times are stored in
// milliseconds.
func Foreign(t *testing.T, db Database) {
	s := db.Open(t, "&sweep=never")
	rec := Record("ada", "a", "1")
	good, err := driver.Encode(rec)
	if err != nil {
		t.Fatal(err)
	}
	future := append([]byte{2}, good[1:]...)
	for name, tt := range map[string]struct {
		data []byte
		want error
	}{
		"empty": {[]byte{}, driver.ErrCorrupt}, "short": {good[:20], driver.ErrCorrupt}, "cut": {good[:len(good)-1], driver.ErrCorrupt},
		"future": {future, driver.ErrVersion},
	} {
		id := ID(1)
		MustSave(t, s, id, rec, 0)
		set := fmt.Sprintf("UPDATE %s SET data = %s", Table, literal(db, tt.data))
		MustExec(t, db.Admin, set)
		if _, err := s.Load(t.Context(), id); !errors.Is(err, tt.want) {
			t.Errorf("%s: Load = %v, want %v", name, err, tt.want)
		}
		if err := s.Save(t.Context(), id, After(rec), 0); !errors.Is(err, driver.ErrConflict) {
			t.Errorf("%s: Save of a new record over it = %v, want ErrConflict", name, err)
		}
		var kept []byte
		if err := db.Admin.QueryRowContext(t.Context(), "SELECT data FROM "+Table).Scan(&kept); err != nil || string(kept) != string(tt.data) {
			t.Errorf("%s: it was changed to %x, %v", name, kept, err)
		}
		for item, err := range s.List(t.Context()) {
			t.Errorf("%s: List yields %v, %v", name, item, err)
		}
		if err := s.Delete(t.Context(), id); err != nil {
			t.Errorf("%s: Delete = %v", name, err)
		}
	}
	MustSave(t, s, ID(2), rec, 0)
	for column, want := range map[string]int64{"seen": rec.Seen.UnixMilli(), "expires": rec.Expires.UnixMilli(),
		"revision": int64(rec.Revision), "sweep": (rec.Expires.UnixMilli()-1)/900_000 + 1} {
		if got := MustInt(t, db.Admin, "SELECT "+column+" FROM "+Table); got != want {
			t.Errorf("column %s is %d, want %d", column, got, want)
		}
	}
	far := Record("far")
	far.Expires = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	MustSave(t, s, ID(3), far, 0)
	WantStored(t, s, ID(3), far)
	if err := s.Delete(t.Context(), ID(3)); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), ID(2)); err != nil {
		t.Error(err)
	}
}

// literal writes bytes as the database reads them.
func literal(db Database, b []byte) string {
	if strings.Contains(fmt.Sprintf("%T", db.Admin.Driver()), "stdlib") {
		return fmt.Sprintf(`'\x%x'::bytea`, b)
	}
	return fmt.Sprintf("x'%x'", b)
}

// Page proves that the page of a store has the schema as it is printed, and the rights.
func Page(t *testing.T, page, schema string) {
	t.Helper()
	b, err := os.ReadFile("../../../docs/stores/" + page)
	if err != nil {
		t.Fatal(err)
	}
	oneLine := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	text := oneLine(string(b))
	for statement := range strings.SplitSeq(strings.ReplaceAll(schema, "\n-- ", "\n"), ";\n") {
		statement = oneLine(strings.ReplaceAll(statement, "What the user of the application needs:", ""))
		if !strings.Contains(text, statement) {
			t.Errorf("docs/stores/%s has not: %s", page, statement)
		}
	}
}

// Parallel makes calls at once that each have their own records, so that statements meet every connection.
func Parallel(t *testing.T, s *sqlstore.Store) {
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 50 {
				id, rec := ID(1000*g+i), Record(fmt.Sprint("user", g), "i", fmt.Sprint(i))
				next := After(rec, Set("i", "again"))
				if err := errors.Join(s.Save(t.Context(), id, rec, 0), s.Save(t.Context(), id, next, rec.Revision)); err != nil {
					t.Errorf("Save = %v", err)
				}
				WantStored(t, s, id, next)
				if err := errors.Join(s.Touch(t.Context(), id, After(next), next.Revision), s.Delete(t.Context(), id)); err != nil {
					t.Errorf("Touch or Delete = %v", err)
				}
			}
		})
	}
	wg.Wait()
}
