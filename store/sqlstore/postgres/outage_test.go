package postgres_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
)

// TestOutages causes everything that can happen to a server, while visitors are at work.
func TestOutages(t *testing.T) {
	readOnly := testfault.Fault{Create: driver.ErrReadOnly, Write: driver.ErrReadOnly, Delete: driver.ErrReadOnly}
	deletes := testfault.Down // names no other column
	deletes.Delete = nil
	kind.Outages(t, testsql.OutageOptions{
		User: []string{"CREATE ROLE plain LOGIN PASSWORD '" + testserver.PostgresPassword("s3cret") + "'", "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast_sessions TO plain",
			"GRANT SELECT, UPDATE ON holdfast_sessions_meta TO plain"},
		Lock: "BEGIN; LOCK TABLE holdfast_sessions IN ACCESS EXCLUSIVE MODE",
		Faults: []testsql.Fault{
			{Name: "read-only", Fault: readOnly, Cut: true,
				Begin: "ALTER ROLE plain SET default_transaction_read_only = on", End: "ALTER ROLE plain RESET default_transaction_read_only"},
			{Name: "rights withdrawn", Fault: testfault.Down,
				Begin: "REVOKE ALL ON holdfast_sessions FROM plain", End: "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast_sessions TO plain"},
			{Name: "login refused", Fault: testfault.Down, Cut: true, Begin: "ALTER ROLE plain NOLOGIN", End: "ALTER ROLE plain LOGIN"},
			{Name: "too many connections", Fault: testfault.Down, Cut: true,
				Begin: "ALTER ROLE plain CONNECTION LIMIT 0", End: "ALTER ROLE plain CONNECTION LIMIT -1"},
			{Name: "table gone", Fault: testfault.Down,
				Begin: "ALTER TABLE holdfast_sessions RENAME TO elsewhere", End: "ALTER TABLE elsewhere RENAME TO holdfast_sessions"},
			{Name: "wrong schema", Fault: deletes,
				Begin: "ALTER TABLE holdfast_sessions RENAME revision TO version", End: "ALTER TABLE holdfast_sessions RENAME version TO revision"},
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
	kind.DiskFull(t, srv, disk, 200_000)
}
