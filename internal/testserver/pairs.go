package testserver

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Pair is a database server and its replica.
type Pair struct {
	Primary, Replica *Server

	t       testing.TB
	promote func() error
	part    func() error
	open    func() error // makes the old primary take writes
}

// PairOptions say how a [Pair] replicates.
type PairOptions struct {
	// Synchronous has the primary acknowledge a commit only once the replica has it too.
	Synchronous bool
}

// Promote makes the replica the primary, with all that it has received. The old primary should be stopped.
func (p *Pair) Promote() {
	p.t.Helper()
	if err := p.promote(); err != nil {
		p.t.Fatalf("testserver: promote: %v\n%s", err, p.Replica.Log())
	}
}

// Return starts the old primary again, as it was when it was stopped: it takes writes, and knows nothing of the promotion.
func (p *Pair) Return() {
	p.t.Helper()
	p.Primary.Restart()
	if err := p.open(); err != nil {
		p.t.Fatalf("testserver: the old primary: %v\n%s", err, p.Primary.Log())
	}
}

// Part ends the replication: what is committed from now on the replica does not get.
func (p *Pair) Part() {
	p.t.Helper()
	if err := p.part(); err != nil {
		p.t.Fatalf("testserver: end the replication: %v\n%s", err, p.Replica.Log())
	}
}

// MariaDBPair starts a MariaDB server and a replica that follows it by GTID, by semi-synchronous replication if asked:
// the primary waits for the replica's receipt before it commits, and for as long as it takes. As MariaDB's manual advises,
// both are read-only when they start; the primary is then made to take writes.
func MariaDBPair(t testing.TB, o ...PairOptions) *Pair {
	t.Helper()
	config := func(id string) []string {
		conf := []string{"server-id = " + id, "log-bin = bin", "log-slave-updates", "gtid-strict-mode = ON",
			"read-only = ON", "slave-net-timeout = 5", "innodb-buffer-pool-size = 32M"}
		if first(o).Synchronous {
			conf = append(conf, "rpl-semi-sync-slave-enabled = ON", "rpl-semi-sync-master-timeout = 3600000",
				"rpl-semi-sync-master-wait-point = AFTER_SYNC")
		}
		return conf
	}
	p := &Pair{t: t}
	p.Primary = MariaDB(t, MariaDBOptions{Config: config("1")})
	p.Replica = MariaDB(t, MariaDBOptions{Config: config("2")})
	must := func(s *Server, statements ...string) {
		t.Helper()
		if _, err := s.mariadb(statements...); err != nil {
			t.Fatal(err)
		}
	}
	p.open = func() error { _, err := p.Primary.mariadb("SET GLOBAL read_only = OFF"); return err }
	must(p.Primary, "SET GLOBAL read_only = OFF")
	must(p.Replica,
		"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT="+p.Primary.Port()+", MASTER_USER='"+DatabaseUser+
			"', MASTER_PASSWORD='"+DatabasePassword+"', MASTER_USE_GTID=slave_pos, MASTER_CONNECT_RETRY=1",
		"START SLAVE")
	mustEventually(t, "the replica follows", func() error {
		status, err := p.Replica.mariadb("SHOW SLAVE STATUS")
		if err == nil && (column(status, "Slave_IO_Running") != "Yes" || column(status, "Slave_SQL_Running") != "Yes") {
			err = fmt.Errorf("not running:\n%s", status)
		}
		return err
	})
	if first(o).Synchronous {
		must(p.Primary, "SET GLOBAL rpl_semi_sync_master_enabled = ON")
		mustEventually(t, "the replica confirms", func() error {
			n, err := p.Primary.mariadb("SHOW STATUS LIKE 'Rpl_semi_sync_master_clients'")
			if err == nil && !strings.Contains(n, "Value: 1") {
				err = fmt.Errorf("clients: %s", n)
			}
			return err
		})
	}
	p.promote = func() error {
		status, err := p.Replica.mariadb("STOP SLAVE IO_THREAD", "SHOW SLAVE STATUS")
		if err != nil {
			return err
		}
		// What was received and is not applied yet would be thrown away.
		received := column(status, "Gtid_IO_Pos")
		waited, err := p.Replica.mariadb("SELECT MASTER_GTID_WAIT('"+received+"', 30) AS Waited",
			"STOP SLAVE", "RESET SLAVE ALL", "SET GLOBAL read_only = OFF")
		if err == nil && column(waited, "Waited") != "0" {
			err = fmt.Errorf("%s is not applied after 30s", received)
		}
		return err
	}
	p.part = func() error {
		_, err := p.Replica.mariadb("STOP SLAVE IO_THREAD")
		return err
	}
	return p
}

// mariadb runs statements as their client does, which answers with a line for each column.
func (s *Server) mariadb(statements ...string) (string, error) {
	cmd := exec.Command("mariadb", "--no-defaults", "--protocol=tcp", "--host=127.0.0.1", "--port="+s.Port(),
		"--user="+DatabaseUser, "--connect-timeout=10", "--vertical", "--execute="+strings.Join(statements, "; "))
	cmd.Env = append(os.Environ(), "MYSQL_PWD="+DatabasePassword)
	return output(cmd)
}

// column returns the value of a column of the client's answer.
func column(answer, name string) string {
	for line := range strings.Lines(answer) {
		if found, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && found == name {
			return value
		}
	}
	return ""
}

// PostgresPair starts a PostgreSQL server and a hot standby, a synchronous one if asked.
func PostgresPair(t testing.TB, o ...PairOptions) *Pair {
	t.Helper()
	config := []string{"wal_level = replica", "max_wal_senders = 4", "wal_receiver_status_interval = 1s"}
	p := &Pair{t: t, open: func() error { return nil }}
	p.Primary = Postgres(t, PostgresOptions{Config: config})
	p.Replica = Postgres(t, PostgresOptions{Config: config, Primary: p.Primary})
	want := "async"
	if first(o).Synchronous {
		want = "sync"
		if _, err := p.Primary.psql("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"); err != nil {
			t.Fatal(err)
		}
	}
	mustEventually(t, "the standby follows", func() error {
		state, err := p.Primary.psql("SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'")
		if err == nil && strings.TrimSpace(state) != want {
			err = fmt.Errorf("standbys: %q, want %q", state, want)
		}
		return err
	})
	p.promote = func() error {
		answer, err := p.Replica.psql("SELECT pg_promote(true, 30)")
		if err == nil && strings.TrimSpace(answer) != "t" {
			err = fmt.Errorf("pg_promote: %s", answer)
		}
		return err
	}
	p.part = func() error {
		if _, err := p.Replica.psql("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"); err != nil {
			return err
		}
		mustEventually(t, "the standby has left", func() error {
			n, err := p.Primary.psql("SELECT count(*) FROM pg_stat_replication")
			if err == nil && strings.TrimSpace(n) != "0" {
				err = fmt.Errorf("standbys: %s", n)
			}
			return err
		})
		return nil
	}
	return p
}

// psql runs statements, each by itself, as their client does, which answers with the values alone.
func (s *Server) psql(statements ...string) (string, error) {
	args := []string{"--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1",
		"--host=127.0.0.1", "--port=" + s.Port(), "--username=" + DatabaseUser, "--dbname=" + Database}
	for _, statement := range statements {
		args = append(args, "--command="+statement)
	}
	cmd := exec.Command("psql", args...)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+DatabasePassword, "PGCONNECT_TIMEOUT=10")
	return output(cmd)
}

// output runs a client to its end.
func output(cmd *exec.Cmd) (string, error) {
	var failed strings.Builder
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", cmd.Path, err, strings.TrimSpace(failed.String()))
	}
	return string(out), err
}

// mustEventually waits until f returns nil.
func mustEventually(t testing.TB, what string, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("testserver: not after %v: %s: %v", startTimeout, what, err)
		}
	}
}
