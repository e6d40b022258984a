package mysql_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/mysql"
)

// down is what a store says whose server does not answer its calls.
var down = testfault.Fault{Load: driver.ErrUnavailable, Create: driver.ErrUnavailable, Write: driver.ErrUnavailable, Delete: driver.ErrUnavailable}

const pool = 8

// TestOutages causes everything that can happen to a server, while visitors are at work.
func TestOutages(t *testing.T) {
	srv := testserver.MariaDB(t)
	admin := func(t testing.TB, statements ...string) {
		t.Helper()
		db := mustAdmin(t, srv) // a new one: its connections break with the others
		defer db.Close()
		for _, statement := range statements {
			if statement == cutPlain {
				cutAll(t, db)
				continue
			}
			testsql.MustExec(t, db, statement)
		}
	}
	mustOpen(t, address(srv)) // makes the tables
	admin(t, "CREATE USER plain@'%' IDENTIFIED BY 's3cret'", "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.holdfast_sessions TO plain@'%'",
		"GRANT SELECT, UPDATE ON holdfast.holdfast_sessions_meta TO plain@'%'")
	fault := func(name string, f testfault.Fault, cause, end string) testfault.Fault {
		f.Name, f.Cause = name, func(t testing.TB) func() {
			admin(t, strings.Split(cause, "; ")...)
			return func() { admin(t, end) }
		}
		return f
	}
	locked := down
	locked.Name, locked.Cause = "table locked", func(t testing.TB) func() {
		db := mustAdmin(t, srv)
		conn, err := db.Conn(t.Context())
		if err == nil {
			_, err = conn.ExecContext(t.Context(), "LOCK TABLES holdfast_sessions WRITE")
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() { _ = conn.Close(); db.Close() } // which unlocks
	}
	deletes := down // names no other column
	deletes.Delete = nil
	testfault.Outages(t, testfault.Target{
		Server: srv, Addr: srv.Addr, Keeps: true, Pool: pool,
		Open: func(t testing.TB, addr string) driver.Store {
			return mustOpen(t, strings.Replace(address(srv), testserver.DatabaseUser+":"+testserver.DatabasePassword+"@"+srv.Addr, "plain:s3cret@"+addr, 1)+fmt.Sprint("?max_conns=", pool))
		},
		Faults: []testfault.Fault{
			fault("read-only", testfault.Fault{Create: driver.ErrReadOnly, Write: driver.ErrReadOnly, Delete: driver.ErrReadOnly},
				"SET GLOBAL read_only = ON", "SET GLOBAL read_only = OFF"),
			fault("rights withdrawn", down, "REVOKE ALL ON holdfast.holdfast_sessions FROM plain@'%'",
				"GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.holdfast_sessions TO plain@'%'"),
			fault("login refused", down, "ALTER USER plain@'%' ACCOUNT LOCK; "+cutPlain, "ALTER USER plain@'%' ACCOUNT UNLOCK"),
			fault("table gone", down, "RENAME TABLE holdfast_sessions TO elsewhere", "RENAME TABLE elsewhere TO holdfast_sessions"),
			fault("wrong schema", deletes, "ALTER TABLE holdfast_sessions CHANGE revision version BIGINT NOT NULL",
				"ALTER TABLE holdfast_sessions CHANGE version revision BIGINT NOT NULL"),
			locked,
		},
	})
}

// cutPlain stands for the end of all connections.
const cutPlain = "cut"

// TestDiskFull fills the disk that the table is on.
func TestDiskFull(t *testing.T) {
	disk := testserver.SmallDisk(t, "32m", "")
	srv := testserver.MariaDB(t)
	url := address(srv) + fmt.Sprint("?max_conns=", pool)
	schema, err := mysql.Schema(url)
	if err != nil {
		t.Fatal(err)
	}
	table, _, _ := strings.Cut(schema, ";")
	testsql.MustExec(t, mustAdmin(t, srv), table+" DATA DIRECTORY='"+disk.Dir+"'")
	testfault.Outages(t, testfault.Target{
		Addr: srv.Addr, Keeps: true, Pool: pool,
		Open: func(t testing.TB, addr string) driver.Store {
			return mustOpen(t, strings.Replace(url, srv.Addr, addr, 1))
		},
		Faults: []testfault.Fault{{
			Name: "disk full", Bytes: 2 << 20, Create: driver.ErrUnavailable, Write: testfault.ErrEither,
			Cause: func(testing.TB) func() {
				disk.Fill()
				return disk.Free
			},
		}},
	})
}
