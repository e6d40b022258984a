package testserver

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// PostgresOptions say how [Postgres] configures the server.
type PostgresOptions struct {
	// Config are further lines of postgresql.conf.
	Config []string
	// Primary makes the server a hot standby of this one, by a base backup.
	Primary *Server
	// TLS has the server take TLS only, with certificates of its own.
	TLS bool
}

// Postgres starts postgres with an empty database [Database]. If the tests run as root it runs as user postgres, as it
// refuses to run as root.
func Postgres(t testing.TB, o ...PostgresOptions) *Server {
	t.Helper()
	opt := first(o)
	var certificates *Certificates
	if opt.TLS {
		certificates = NewCertificates(t)
	}
	return start(t, spec{
		program: "postgres",
		debian:  "postgresql",
		user:    "postgres",
		find: func() []string {
			paths, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres") // the pattern is well-formed
			slices.Reverse(paths)
			return paths
		},
		prepare: func(s *Server) error { return postgresPrepare(s, opt) },
		args: func(s *Server) []string {
			s.mustWrite("data/postgresql.conf", postgresConfig(s, opt))
			return []string{"-D", filepath.Join(s.Dir, "data")}
		},
		ready: postgresReady,
	}, certificates)
}

// postgresPrepare makes the data directory.
func postgresPrepare(s *Server, o PostgresOptions) error {
	bin, data := filepath.Dir(s.path), filepath.Join(s.Dir, "data")
	run := func(program string, args ...string) error {
		cmd := exec.Command(filepath.Join(bin, program), args...)
		cmd.Dir = s.Dir
		if err := runAs(cmd, s.spec.user, s.Dir); err != nil {
			return err
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", program, err, out)
		}
		return nil
	}
	if o.Primary != nil {
		return run("pg_basebackup", "-D", data, "-R", "-X", "stream", "-c", "fast", "--no-sync",
			"-d", "host=127.0.0.1 port="+o.Primary.Port()+" user="+DatabaseUser+" password="+DatabasePassword)
	}
	s.mustWrite("password", DatabasePassword+"\n")
	err := run("initdb", "-D", data, "-U", DatabaseUser, "--pwfile="+filepath.Join(s.Dir, "password"),
		"-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync")
	if err != nil {
		return err
	}
	// The standalone server makes the database before anybody connects.
	cmd := exec.Command(s.path, "--single", "-D", data, "postgres")
	cmd.Dir, cmd.Stdin = s.Dir, strings.NewReader("CREATE DATABASE "+Database+"\nALTER ROLE "+DatabaseUser+" PASSWORD '"+PostgresPassword(DatabasePassword)+"'\n")
	if err := runAs(cmd, s.spec.user, s.Dir); err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("create the database: %w\n%s", err, out)
	}
	if s.TLS == nil {
		return nil
	}
	s.mustWrite("data/pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\n")
	for name, path := range map[string]string{"ca.pem": s.TLS.CAFile, "cert.pem": s.TLS.CertFile, "key.pem": s.TLS.KeyFile} {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		s.mustWrite("data/"+name, string(b)) // its user may not read the originals
	}
	return nil
}

// PostgresPassword returns what CREATE ROLE and ALTER ROLE take in place of a password, to be used by SCRAM-SHA-256 with one
// round of hashing (RFC 5802). The 4,096 rounds of PostgreSQL are for people's passwords, and under the race detector they
// are most of what a test that makes connections does.
func PostgresPassword(password string) string {
	const salt, rounds = "0123456789abcdef", 1
	salted, err := pbkdf2.Key(sha256.New, password, []byte(salt), rounds, sha256.Size)
	if err != nil {
		panic("testserver: " + err.Error()) // the arguments are right
	}
	keyed := func(text string) []byte {
		mac := hmac.New(sha256.New, salted)
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
	stored := sha256.Sum256(keyed("Client Key"))
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, encode([]byte(salt)), encode(stored[:]), encode(keyed("Server Key")))
}

func postgresConfig(s *Server, o PostgresOptions) string {
	conf := []string{
		"listen_addresses = '127.0.0.1'",
		"port = " + s.Port(),
		"unix_socket_directories = ''",
		"shared_buffers = 32MB",
		// A killed process loses nothing of this, and the power is not cut.
		"fsync = off",
		"max_connections = 100",
	}
	if s.TLS != nil {
		conf = append(conf, "ssl = on", "ssl_ca_file = 'ca.pem'", "ssl_cert_file = 'cert.pem'", "ssl_key_file = 'key.pem'")
	}
	return lines(append(conf, o.Config...)...)
}

// postgresReady asks as a user whom the server does not know, which it answers once it accepts connections. The message
// is that of protocol 3.0: length, version, parameters.
func postgresReady(ctx context.Context, s *Server) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // fails on a closed connection only, and then the read says so
	}
	body := "\x00\x03\x00\x00user\x00" + DatabaseUser + "\x00database\x00" + Database + "\x00\x00"
	message := append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)
	if _, err := conn.Write(message); err != nil {
		return err
	}
	reply := make([]byte, 256)
	n, err := conn.Read(reply)
	if err != nil {
		return err
	}
	asksPassword := reply[0] == 'R'
	wantsTLS := s.TLS != nil && bytes.Contains(reply[:n], []byte("28000")) // no entry in pg_hba.conf
	if !asksPassword && !wantsTLS {
		return fmt.Errorf("the server answers %q", reply[:n])
	}
	return nil
}
