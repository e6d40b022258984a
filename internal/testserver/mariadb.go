package testserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What every database server of this package has: a database, and a user who may do everything, also over TCP.
const (
	Database         = "holdfast"
	DatabaseUser     = "holdfast"
	DatabasePassword = "s3cret"
)

// MariaDBOptions say how [MariaDB] configures the server.
type MariaDBOptions struct {
	// Config are further lines of the section [mariadbd].
	Config []string

	firstArgs []string // further arguments of the first start only
	joins     bool     // a cluster, whose data it copies: it makes none of its own
	user      string   // whom it runs as if the tests run as root; "": root
}

// MariaDB starts mariadbd with an empty database [Database].
func MariaDB(t testing.TB, o ...MariaDBOptions) *Server {
	t.Helper()
	opt := first(o)
	s := start(t, spec{
		program: "mariadbd",
		debian:  "mariadb-server",
		user:    opt.user,
		prepare: func(s *Server) error { return mariadbPrepare(s, opt) },
		args: func(s *Server) []string {
			return append([]string{"--defaults-file=" + s.mustWrite("my.cnf", mariadbConfig(s, opt))}, opt.firstArgs...)
		},
		ready: mariadbReady,
	}, nil)
	opt.firstArgs = nil
	return s
}

// mariadbPrepare makes the data directory.
func mariadbPrepare(s *Server, o MariaDBOptions) error {
	data := filepath.Join(s.Dir, "data")
	if o.joins {
		s.mustWrite("init.sql", "")
		return os.Mkdir(data, 0o700)
	}
	args := []string{"--no-defaults", "--datadir=" + data, "--auth-root-authentication-method=normal", "--skip-test-db",
		// In a directory that they share, servers that start remove each other's temporary tables.
		"--tmpdir=" + s.Dir, "--innodb-log-file-size=8M", "--skip-name-resolve"}
	if os.Geteuid() == 0 {
		args = append(args, "--user=root")
	}
	out, err := exec.Command("mariadb-install-db", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mariadb-install-db: %w\n%s", err, out)
	}
	// Not in the binary log: every server of a replicated pair runs it.
	s.mustWrite("init.sql", lines(
		"SET sql_log_bin=0;",
		"CREATE DATABASE IF NOT EXISTS "+Database+";",
		"CREATE USER IF NOT EXISTS '"+DatabaseUser+"'@'%' IDENTIFIED BY '"+DatabasePassword+"';",
		"GRANT ALL ON *.* TO '"+DatabaseUser+"'@'%' WITH GRANT OPTION;",
	))
	return nil
}

func mariadbConfig(s *Server, o MariaDBOptions) string {
	conf := []string{
		"[mariadbd]",
		"datadir = " + filepath.Join(s.Dir, "data"),
		"tmpdir = " + s.Dir,
		"socket = " + filepath.Join(s.Dir, "data", "s"),
		"pid-file = " + filepath.Join(s.Dir, "pid"),
		"bind-address = 127.0.0.1",
		"port = " + s.Port(),
		"init-file = " + filepath.Join(s.Dir, "init.sql"),
		"skip-name-resolve",
		"innodb-log-file-size = 8M",
		"innodb-buffer-pool-size = 64M",
		// A killed process loses nothing of this, and the power is not cut.
		"innodb-flush-log-at-trx-commit = 2",
		"performance-schema = OFF",
	}
	if os.Geteuid() == 0 && o.user == "" {
		conf = append(conf, "user = root")
	}
	return lines(append(conf, o.Config...)...)
}

// mariadbReady reads the greeting, which is sent after init.sql has been run: 3 bytes length, 1 byte number, 10.
func mariadbReady(ctx context.Context, s *Server) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // fails on a closed connection only, and then the read says so
	}
	greeting := make([]byte, 5)
	if _, err := io.ReadFull(conn, greeting); err != nil {
		return err
	}
	if greeting[4] != 10 {
		return errors.New("the server greets with an error")
	}
	return nil
}
