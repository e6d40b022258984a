package mysql_test

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/internal/testsql"
	"github.com/holdfast-sessions/holdfast/store/sqlstore/mysql"
)

// TestRestart kills the server: calls say ErrUnavailable at once, the first after it is back works, and what was
// acknowledged is there.
func TestRestart(t *testing.T) {
	t.Parallel()
	kind.Restart(t, "is mysqld or mariadbd running there?")
}

// TestAnswerLost cuts connections in mid-answer: a write is never sent twice, a read is.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	srv := testserver.MariaDB(t)
	admin := mustAdmin(t, srv)
	kind.AnswerLost(t, srv, admin, func(statement string) int64 { return status(t, admin, "COM_"+strings.ToUpper(statement)) })
}

// TestCloseFrozen closes a store whose server does not answer.
func TestCloseFrozen(t *testing.T) {
	t.Parallel()
	kind.CloseFrozen(t)
}

// TestFailover names two hosts: the store uses the one that takes writes, whichever it is, and finds the other when that
// changes.
func TestFailover(t *testing.T) {
	t.Parallel()
	a, b := testserver.MariaDB(t), testserver.MariaDB(t)
	adminA, adminB := mustAdmin(t, a), mustAdmin(t, b)
	for _, admin := range []*sql.DB{adminA, adminB} {
		testsql.MustExec(t, admin, "CREATE USER plain@'%' IDENTIFIED BY 's3cret'")
		testsql.MustExec(t, admin, "GRANT ALL ON holdfast.* TO plain@'%'")
	}
	both := "mysql://plain:s3cret@" + a.Addr + "," + b.Addr + "/holdfast?sweep=never"
	everything := address(a, b) + "?sweep=never"
	readOnly := func(t *testing.T, on ...any) {
		t.Helper()
		testsql.MustExec(t, adminA, "SET GLOBAL read_only = ?", on[0])
		testsql.MustExec(t, adminB, "SET GLOBAL read_only = ?", on[1])
	}
	rec := testsql.Record("ada")
	count := func(t *testing.T) [2]int64 {
		t.Helper()
		q := "SELECT COUNT(*) FROM " + testsql.Table
		return [2]int64{testsql.MustInt(t, adminA, q), testsql.MustInt(t, adminB, q)}
	}
	mustOpen(t, address(a))
	mustOpen(t, address(b))

	readOnly(t, 1, 0)
	s := mustOpen(t, both)
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	// This user may write to a read-only server; the store does not.
	testsql.MustSave(t, mustOpen(t, everything), testsql.ID(10), rec, 0)
	if got := count(t); got != [2]int64{0, 2} {
		t.Errorf("first host read-only: rows %v, want them on the second", got)
	}

	readOnly(t, 0, 1) // switched over: connections to b are open
	if err := s.Save(t.Context(), testsql.ID(2), rec, 0); err != nil {
		t.Errorf("after a switch-over Save = %v", err)
	}
	if got := count(t); got != [2]int64{1, 2} {
		t.Errorf("after a switch-over: rows %v, want one on the first host", got)
	}

	readOnly(t, 1, 1)
	s2, err := mysql.Open(t.Context(), both)
	testsql.WantOpenError(t, "all read-only", err, "no host takes writes", true)
	if s2 != nil {
		t.Fatal("opened")
	}

	readOnly(t, 0, 1)
	a.Stop()
	if _, err := s.Load(t.Context(), testsql.ID(1)); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("one host down, the other read-only: Load = %v, want ErrUnavailable", err)
	}
	testsql.MustExec(t, adminB, "SET GLOBAL read_only = 0") // promoted
	testsql.MustSave(t, s, testsql.ID(3), rec, 0)
	s3 := mustOpen(t, both) // the first host is down
	testsql.WantStored(t, s3, testsql.ID(3), rec)

	b.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := s.Load(ctx, testsql.ID(3)); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("one host down, one frozen: Load = %v, want ErrUnavailable", err)
	}
	a.Restart()
	testsql.MustSave(t, s, testsql.ID(4), rec, 0) // back on a
	b.Thaw()
}

// TestReadOnly is a single host that takes no writes: reads work.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	srv := testserver.MariaDB(t)
	admin := mustAdmin(t, srv)
	s := mustOpen(t, address(srv)+"?sweep=never")
	rec := testsql.Record("ada")
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	testsql.MustExec(t, admin, "CREATE USER plain@'%' IDENTIFIED BY 's3cret'")
	testsql.MustExec(t, admin, "GRANT SELECT, INSERT, UPDATE, DELETE ON holdfast.* TO plain@'%'")
	plain := mustOpen(t, "mysql://plain:s3cret@"+srv.Addr+"/holdfast?sweep=never")
	testsql.WantStored(t, plain, testsql.ID(1), rec)
	testsql.MustExec(t, admin, "SET GLOBAL read_only = 1")
	// DatabaseUser may write all the same, on connections from before: the rest of this test is about plain.
	for name, s := range map[string]driver.Store{"a connection from before": plain, "opened read-only": mustOpen(t, address(srv)+"?sweep=never")} {
		testsql.WantStored(t, s, testsql.ID(1), rec)
		for call, err := range map[string]error{
			"Save": s.Save(t.Context(), testsql.ID(1), testsql.After(rec), rec.Revision), "create": s.Save(t.Context(), testsql.ID(2), rec, 0),
			"Touch": s.(driver.Toucher).Touch(t.Context(), testsql.ID(1), testsql.After(rec), rec.Revision), "Delete": s.Delete(t.Context(), testsql.ID(1)),
		} {
			if !errors.Is(err, driver.ErrReadOnly) {
				t.Errorf("%s: %s = %v, want ErrReadOnly", name, call, err)
			}
		}
		testsql.WantStored(t, s, testsql.ID(1), rec)
	}
	testsql.MustExec(t, admin, "SET GLOBAL read_only = 0")
	testsql.Eventually(t, "writes work again", func() bool {
		err := plain.Save(t.Context(), testsql.ID(3), rec, 0)
		if err != nil && !errors.Is(err, driver.ErrReadOnly) {
			t.Errorf("Save = %v", err)
		}
		return err == nil
	})
}

// TestGaleraNode is a cluster of one node: sessions wait for what is committed elsewhere, and a node that takes no queries
// (error 1047, also said by one that has lost the cluster) is left for the next host.
func TestGaleraNode(t *testing.T) {
	t.Parallel()
	const provider = testserver.GaleraProvider
	if _, err := os.Stat(provider); err != nil {
		t.Skip("NOT RUN: TestGaleraNode needs " + provider + " (Debian: apt-get install galera-4)")
	}
	_, port, err := net.SplitHostPort(testserver.FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	node := testserver.MariaDB(t, testserver.MariaDBOptions{Config: []string{
		"wsrep-on = ON", "wsrep-provider = " + provider, "wsrep-cluster-address = gcomm://", "wsrep-new-cluster", "binlog-format = ROW",
		"wsrep-node-address = 127.0.0.1", "wsrep-provider-options = base_host=127.0.0.1;gmcast.listen_addr=tcp://127.0.0.1:" + port,
	}})
	other := testserver.MariaDB(t)
	admin := mustAdmin(t, node)
	testsql.MustExec(t, admin, "SET GLOBAL general_log = 1")
	testsql.MustExec(t, admin, "SET GLOBAL log_output = 'TABLE'")
	mustOpen(t, address(other))
	s := mustOpen(t, address(node, other)+"?sweep=never")
	alone := mustOpen(t, address(node)+"?sweep=never")
	for _, c := range testsql.Calls(s) {
		if err := c.Do(t.Context()); !errors.Is(err, c.Want) {
			t.Errorf("%s: %v, want %v", c.Name, err, c.Want)
		}
	}
	if n := testsql.MustInt(t, admin, "SELECT COUNT(*) FROM mysql.general_log WHERE argument LIKE 'SET SESSION %wsrep_sync_wait = 1'"); n == 0 {
		t.Error("sessions do not set wsrep_sync_wait")
	}
	rec := testsql.Record("ada")
	testsql.MustSave(t, s, testsql.ID(1), rec, 0)
	testsql.MustExec(t, admin, "SET GLOBAL wsrep_reject_queries = ALL")
	if _, err := s.Load(t.Context(), testsql.ID(1)); !errors.Is(err, driver.ErrNotFound) {
		t.Errorf("Load = %v, want the answer of the other host", err)
	}
	testsql.MustSave(t, s, testsql.ID(2), rec, 0)
	if _, err := alone.Load(t.Context(), testsql.ID(1)); !errors.Is(err, driver.ErrUnavailable) || !strings.Contains(err.Error(), "Galera") {
		t.Errorf("alone: Load = %v, want ErrUnavailable that names Galera", err)
	}
	testsql.MustExec(t, admin, "SET GLOBAL wsrep_reject_queries = NONE")
	testsql.WantStored(t, alone, testsql.ID(1), rec)
}
