package postgres_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
)

// down is what a store says whose server does not answer its calls.
var down = testfault.Fault{Load: driver.ErrUnavailable, Create: driver.ErrUnavailable, Write: driver.ErrUnavailable, Delete: driver.ErrUnavailable}

const pool = 8

// TestOutages causes everything that can happen to a server, while visitors are at work.
func TestOutages(t *testing.T) {
	srv := testserver.Postgres(t)
	admin := func(t testing.TB, statements ...string) {
		t.Helper()
		db := mustAdmin(t, srv) // a new one: its connections break with the others
		defer db.Close()
		for _, statement := range statements {
			testsql.MustExec(t, db, statement)
		}
	}
	mustOpen(t, address(srv)) // makes the tables
	admin(t, "CREATE ROLE plain LOGIN PASSWORD 's3cret'", "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast_sessions TO plain",
		"GRANT SELECT, UPDATE ON holdfast_sessions_meta TO plain")
	fault := func(name string, f testfault.Fault, cause, end string) testfault.Fault {
		f.Name, f.Cause = name, func(t testing.TB) func() {
			admin(t, cause)
			return func() { admin(t, end) }
		}
		return f
	}
	locked := down
	locked.Name, locked.Cause = "table locked", func(t testing.TB) func() {
		db := mustAdmin(t, srv)
		tx, err := db.BeginTx(t.Context(), nil)
		if err == nil {
			_, err = tx.ExecContext(t.Context(), "LOCK TABLE holdfast_sessions IN ACCESS EXCLUSIVE MODE")
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() { _ = tx.Rollback(); db.Close() } // nothing was done
	}
	deletes := down // names no other column
	deletes.Delete = nil
	const cutAll = "; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast'"
	testfault.Outages(t, testfault.Target{
		Server: srv, Addr: srv.Addr, Keeps: true, Pool: pool,
		Open: func(t testing.TB, addr string) driver.Store {
			return mustOpen(t, strings.Replace(address(srv), testserver.DatabaseUser+":"+testserver.DatabasePassword+"@"+srv.Addr, "plain:s3cret@"+addr, 1)+fmt.Sprint("?max_conns=", pool))
		},
		Faults: []testfault.Fault{
			fault("read-only", testfault.Fault{Create: driver.ErrReadOnly, Write: driver.ErrReadOnly, Delete: driver.ErrReadOnly},
				"ALTER ROLE plain SET default_transaction_read_only = on"+cutAll, "ALTER ROLE plain RESET default_transaction_read_only"),
			fault("rights withdrawn", down, "REVOKE ALL ON holdfast_sessions FROM plain", "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast_sessions TO plain"),
			fault("login refused", down, "ALTER ROLE plain NOLOGIN"+cutAll, "ALTER ROLE plain LOGIN"),
			fault("too many connections", down, "ALTER ROLE plain CONNECTION LIMIT 0"+cutAll, "ALTER ROLE plain CONNECTION LIMIT -1"),
			fault("table gone", down, "ALTER TABLE holdfast_sessions RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO holdfast_sessions"),
			fault("wrong schema", deletes, "ALTER TABLE holdfast_sessions RENAME revision TO version", "ALTER TABLE holdfast_sessions RENAME version TO revision"),
			locked,
		},
	})
}

// TestDiskFull fills the disk that the table is on.
func TestDiskFull(t *testing.T) {
	disk := testserver.SmallDisk(t, "32m", "postgres")
	srv := testserver.Postgres(t)
	admin := mustAdmin(t, srv)
	mustOpen(t, address(srv))
	testsql.MustExec(t, admin, "CREATE TABLESPACE small LOCATION '"+disk.Dir+"'")
	testsql.MustExec(t, admin, "ALTER TABLE holdfast_sessions SET TABLESPACE small")
	testfault.Outages(t, testfault.Target{
		Addr: srv.Addr, Keeps: true, Pool: pool,
		Open: func(t testing.TB, addr string) driver.Store {
			return mustOpen(t, strings.Replace(address(srv), srv.Addr, addr, 1)+fmt.Sprint("?max_conns=", pool))
		},
		Faults: []testfault.Fault{{
			Name: "disk full", Bytes: 200_000, Create: driver.ErrUnavailable, Write: testfault.ErrEither,
			Cause: func(testing.TB) func() {
				disk.Fill()
				return disk.Free
			},
		}},
	})
}
