package mysql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // the administrator's connection

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/mysql"
)

var (
	_ driver.Store     = (*sqlstore.Store)(nil)
	_ driver.Toucher   = (*sqlstore.Store)(nil)
	_ driver.Lister    = (*sqlstore.Store)(nil)
	_ driver.Sweeper   = (*sqlstore.Store)(nil)
	_ driver.Stater    = (*sqlstore.Store)(nil)
	_ driver.Describer = (*sqlstore.Store)(nil)
)

func mustAdmin(t testing.TB, srv *testserver.Server) *sql.DB {
	t.Helper()
	db, err := sql.Open("mysql", testserver.DatabaseUser+":"+testserver.DatabasePassword+"@tcp("+srv.Addr+")/"+testserver.Database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// status returns a counter of the server.
func status(t testing.TB, db *sql.DB, name string) int64 {
	t.Helper()
	return testsql.MustInt(t, db, "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = ?", name)
}

func database(t testing.TB, srv *testserver.Server, options string) testsql.Database {
	admin := mustAdmin(t, srv)
	return testsql.Database{
		Open: func(t testing.TB, more string) *sqlstore.Store {
			t.Helper()
			return mustOpen(t, address(srv)+"?max_conns=16"+options+more)
		},
		Admin: admin,
		Usual: 20_000,
		Fill: "INSERT INTO " + testsql.Table + " (id, revision, seen, expires, sweep, data)" +
			" SELECT RANDOM_BYTES(32), seq, 0, %[2]d, %[3]d, REPEAT('x', 500) FROM seq_1_to_%[1]d",
		Deadlocks: func(t testing.TB) int64 { return status(t, admin, "INNODB_DEADLOCKS") },
		LockWaits: func(t testing.TB) int64 { return status(t, admin, "INNODB_ROW_LOCK_WAITS") },
		Deletes: func(t testing.TB) (statements, rows int64) {
			return status(t, admin, "COM_DELETE_MULTI"), status(t, admin, "HANDLER_DELETE")
		},
	}
}

// TestOneStatement counts what the server is sent, and how often: one statement and one round trip a call, whatever
// becomes of it.
func TestOneStatement(t *testing.T) {
	t.Parallel()
	srv := testserver.MariaDB(t)
	admin := mustAdmin(t, srv)
	admin.SetMaxOpenConns(1)
	counters := func() map[string]int64 {
		t.Helper()
		rows, err := admin.Query("SHOW GLOBAL STATUS WHERE Variable_name IN ('Questions', 'Com_select', 'Com_insert', 'Com_update', 'Com_delete')")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		found := make(map[string]int64)
		for rows.Next() {
			var name string
			var n int64
			if err := rows.Scan(&name, &n); err != nil {
				t.Fatal(err)
			}
			found[strings.TrimPrefix(strings.ToLower(name), "com_")] = n
		}
		return found
	}
	for name, options := range map[string]string{"prepared": "", "text": "&prepare=false", "memory": "&engine=memory&table=m"} {
		t.Run(name, func(t *testing.T) {
			proxy := testsql.NewProxy(t, srv.Addr)
			s := mustOpen(t, strings.Replace(address(srv), srv.Addr, proxy.Addr, 1)+"?sweep=never&max_conns=1"+options)
			for _, c := range testsql.Calls(s) {
				before, trips := counters(), proxy.Trips.Load()
				if err := c.Do(t.Context()); !errors.Is(err, c.Want) {
					t.Errorf("%s: %v, want %v", c.Name, err, c.Want)
				}
				after := counters()
				if n := proxy.Trips.Load() - trips; n != 1 {
					t.Errorf("%s: %d round trips, want 1", c.Name, n)
				}
				if n := after["questions"] - before["questions"] - 1; n != 1 { // less this one
					t.Errorf("%s: %d statements, want 1", c.Name, n)
				}
				if n := after[c.Kind] - before[c.Kind]; n != 1 {
					t.Errorf("%s: %d times %s, want once", c.Name, n, c.Kind)
				}
			}
		})
	}
}

func TestShared(t *testing.T) {
	// A million rows are to be removed from memory, as on a server that is made for them.
	pool := fmt.Sprintf("innodb-buffer-pool-size = %dM", testserver.Scale(64, 1500))
	srv := testserver.MariaDB(t, testserver.MariaDBOptions{Config: []string{pool, fmt.Sprintf("innodb-log-file-size = %dM", testserver.Scale(8, 512))}})
	db := database(t, srv, "")
	text := database(t, srv, "&prepare=false")
	t.Run("quotes", func(t *testing.T) { testsql.Quotes(t, db) })
	t.Run("quotes in text", func(t *testing.T) { testsql.Quotes(t, text) })
	t.Run("foreign bytes", func(t *testing.T) { testsql.Foreign(t, db) })
	t.Run("sweep margin", func(t *testing.T) { testsql.SweepMargin(t, db) })
	t.Run("clean-up", func(t *testing.T) { testsql.CleanUp(t, db) })
}

func TestElected(t *testing.T) {
	t.Parallel()
	testsql.Elected(t, database(t, testserver.MariaDB(t), ""))
}

// TestMemory is what differs for a table in memory.
func TestMemory(t *testing.T) {
	t.Parallel()
	srv := testserver.MariaDB(t, testserver.MariaDBOptions{Config: []string{"max-heap-table-size = 1M"}})
	admin := mustAdmin(t, srv)
	url := address(srv) + "?sweep=never&engine=memory&max_bytes=1000"
	s := mustOpen(t, url)
	if d := s.Describe(); d.MaxBytes != 1000 || !strings.Contains(d.Durable, "nothing") || d.Evicts {
		t.Errorf("Describe = %+v, want MaxBytes 1000, nothing durable", d)
	}
	rec := testsql.TenFields(500)
	var err error
	n := 0
	for ; n < 5000 && err == nil; n++ {
		err = s.Save(t.Context(), testsql.ID(n), rec, 0)
	}
	if !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "max_heap_table_size") {
		t.Fatalf("Save number %d = %v, want ErrUnavailable that names max_heap_table_size", n, err)
	}
	t.Logf("%d records of up to 1,000 bytes fit into 1 MiB", n-1)
	for i := range n - 1 { // nothing was lost silently
		testsql.WantStored(t, s, testsql.ID(i), rec)
	}
	if _, err := s.Load(t.Context(), testsql.ID(n-1)); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("Load of what was refused = %v, want ErrNotFound", err)
	}
	if err := s.Delete(t.Context(), testsql.ID(0)); err != nil {
		t.Errorf("Delete = %v", err)
	}
	testsql.MustSave(t, s, testsql.ID(n-1), rec, 0)
	if err := s.Save(t.Context(), testsql.ID(1), testsql.TenFields(2000), rec.Revision); !errors.Is(err, driver.ErrTooLarge) {
		t.Errorf("Save of a large record = %v, want ErrTooLarge", err)
	}

	srv.Restart()
	if _, err := s.Load(t.Context(), testsql.ID(1)); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("after a restart Load = %v, want ErrNotFound", err)
	}
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)

	for options, want := range map[string]string{
		"?engine=innodb":                 "is ENGINE=MEMORY, and the URL says otherwise",
		"?engine=memory&max_bytes=1001":  "is VARBINARY(1000)",
		"?max_bytes=1000":                "is for engine=memory",
		"?engine=memory&max_bytes=70000": "want a number between 256 and 65000",
	} {
		_, err := mysql.Open(t.Context(), address(srv)+options)
		testsql.WantOpenError(t, options, err, want, false)
	}
	if d := mustOpen(t, address(srv)).Describe(); d.MaxBytes != 1000 {
		t.Errorf("found without engine=memory: Describe = %+v, want it taken for what it is", d)
	}
	widest := mustOpen(t, address(srv)+"?engine=memory&table=widest&max_bytes=65000")
	testsql.MustSave(t, widest, testsql.ID(1), testsql.TenFields(60000), 0)
	testsql.MustExec(t, admin, "CREATE TABLE myisam ENGINE=MyISAM SELECT * FROM "+testsql.Table+" LIMIT 0")
	testsql.MustExec(t, admin, "ALTER TABLE myisam ADD PRIMARY KEY (id)")
	testsql.MustExec(t, admin, "CREATE TABLE myisam_meta SELECT * FROM "+testsql.Table+"_meta")
	_, err = mysql.Open(t.Context(), address(srv)+"?table=myisam")
	testsql.WantOpenError(t, "myisam", err, "want InnoDB or MEMORY", false)
}

// TestLockWait has somebody hold a row: the call ends by its deadline, and succeeds when the row is free in time.
func TestLockWait(t *testing.T) {
	t.Parallel()
	srv := testserver.MariaDB(t)
	admin := mustAdmin(t, srv)
	s := mustOpen(t, address(srv)+"?sweep=never")
	rec := testsql.Record("ada")
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	tx, err := admin.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("UPDATE " + testsql.Table + " SET seen = seen + 1"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.Save(ctx, testsql.ID(1), testsql.After(rec), rec.Revision); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("Save of a locked row = %v, want ErrUnavailable", err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Delete(t.Context(), testsql.ID(1)) }() // received below
	// The server gives up the wait after innodb_lock_wait_timeout, and the store waits anew.
	testsql.Eventually(t, "the server has given up a wait", func() bool { return status(t, admin, "INNODB_ROW_LOCK_TIME") > 2500 })
	if err := tx.Rollback(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Delete of a row that was locked for a while = %v", err)
	}
}
