package mysql_test

import (
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testfault"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/mysql"
)

// TestOutages causes everything that can happen to a server, while visitors are at work.
func TestOutages(t *testing.T) {
	readOnly := testfault.Fault{Create: driver.ErrReadOnly, Write: driver.ErrReadOnly, Delete: driver.ErrReadOnly}
	deletes := testfault.Down // names no other column
	deletes.Delete = nil
	kind.Outages(t, testsql.OutageOptions{
		User: []string{"CREATE USER plain@'%' IDENTIFIED BY 's3cret'", "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.holdfast_sessions TO plain@'%'",
			"GRANT SELECT, UPDATE ON holdfast.holdfast_sessions_meta TO plain@'%'"},
		Lock: "LOCK TABLES holdfast_sessions WRITE",
		Faults: []testsql.Fault{
			{Name: "read-only", Fault: readOnly, Begin: "SET GLOBAL read_only = ON", End: "SET GLOBAL read_only = OFF"},
			{Name: "rights withdrawn", Fault: testfault.Down, Begin: "REVOKE ALL ON holdfast.holdfast_sessions FROM plain@'%'",
				End: "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.holdfast_sessions TO plain@'%'"},
			{Name: "login refused", Fault: testfault.Down, Cut: true,
				Begin: "ALTER USER plain@'%' ACCOUNT LOCK", End: "ALTER USER plain@'%' ACCOUNT UNLOCK"},
			{Name: "table gone", Fault: testfault.Down,
				Begin: "RENAME TABLE holdfast_sessions TO elsewhere", End: "RENAME TABLE elsewhere TO holdfast_sessions"},
			{Name: "wrong schema", Fault: deletes, Begin: "ALTER TABLE holdfast_sessions CHANGE revision version BIGINT NOT NULL",
				End: "ALTER TABLE holdfast_sessions CHANGE version revision BIGINT NOT NULL"},
		},
	})
}

// TestDiskFull fills the disk that the table is on.
func TestDiskFull(t *testing.T) {
	disk := testserver.SmallDisk(t, "32m", "")
	srv := testserver.MariaDB(t)
	schema, err := mysql.Schema(address(srv))
	if err != nil {
		t.Fatal(err)
	}
	table, _, _ := strings.Cut(schema, ";")
	testsql.MustExec(t, mustAdmin(t, srv), table+" DATA DIRECTORY='"+disk.Dir+"'")
	kind.DiskFull(t, srv, disk, 2<<20)
}
