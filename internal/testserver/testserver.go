// Package testserver starts the real servers that tests need: the installed program, on a free loopback port, with
// a data directory of its own, stopped when the test ends.
//
//	srv := testserver.Redis(t)
//	store, err := redisstore.Open(ctx, "redis://"+srv.Addr)
//
// A program that is not installed skips the test with a message that begins "NOT RUN: " and names the Debian
// package, so that a test run can list what it left out (go test -v or -json shows the message). With CI=true in
// the environment it fails the test instead.
//
// Each server is one small file that says how to configure it and how to tell that it answers; processes, ports,
// signals and certificates are handled here, once.
package testserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTimeout is how long a server may take until it answers. MariaDB needs seconds on a busy machine.
const startTimeout = 30 * time.Second

// Server is a running server.
type Server struct {
	// Addr is where it listens: 127.0.0.1 and a port.
	Addr string
	// Dir holds its configuration, data and log.
	Dir string
	// TLS holds the certificates, if it was started with TLS.
	TLS *Certificates

	t    testing.TB
	spec spec
	path string
	proc *process // nil when stopped
}

// spec is what one kind of server has to say.
type spec struct {
	program string // "redis-server"
	debian  string // the package that has it
	user    string // whom it has to run as if the tests run as root; "": anybody
	// find returns more places to look for the program. It may be nil.
	find func() []string
	// prepare fills s.Dir before the first start. It may be nil.
	prepare func(s *Server) error
	// args writes the configuration to s.Dir and returns the command line. It is called before every start.
	args func(s *Server) []string
	// env returns what is added to the environment. It may be nil.
	env func(s *Server) []string
	// ready returns nil once the server answers.
	ready func(ctx context.Context, s *Server) error
}

// start runs a new server and returns when it answers.
func start(t testing.TB, sp spec, tls *Certificates) *Server {
	t.Helper()
	s := &Server{t: t, spec: sp, path: mustFind(t, sp), TLS: tls}
	s.Dir = mustDir(t, sp)
	t.Cleanup(s.Stop)
	if sp.prepare != nil {
		if err := sp.prepare(s); err != nil {
			t.Fatalf("testserver: prepare %s: %v", sp.program, err)
		}
	}
	// Another program can take the port between FreeAddr and the server's own bind.
	var err error
	for range 3 {
		s.Addr = FreeAddr(t)
		if err = s.run(); err == nil {
			return s
		}
	}
	t.Fatalf("testserver: %v\n%s", err, s.Log())
	return nil
}

// Stop kills the server (SIGKILL), also when it is frozen, and returns when it is gone. Its data directory stays.
// Stopping a stopped server does nothing.
func (s *Server) Stop() {
	if s.proc != nil {
		s.proc.kill()
		s.proc = nil
	}
}

// Restart stops the server if it runs and starts it on the same address and directory. It returns when the server
// answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	if err := s.run(); err != nil {
		s.t.Fatalf("testserver: restart: %v\n%s", err, s.Log())
	}
}

// Freeze stops the server from running without ending it (SIGSTOP): its connections stay open and nothing answers.
func (s *Server) Freeze() {
	s.t.Helper()
	if err := s.proc.signal(syscall.SIGSTOP); err != nil {
		s.t.Fatalf("testserver: freeze: %v", err)
	}
}

// Thaw lets a frozen server run on.
func (s *Server) Thaw() {
	s.t.Helper()
	if err := s.proc.signal(syscall.SIGCONT); err != nil {
		s.t.Fatalf("testserver: thaw: %v", err)
	}
}

// PID returns the process ID of the running server.
func (s *Server) PID() int { return s.proc.cmd.Process.Pid }

// Log returns the end of what the server has printed.
func (s *Server) Log() string {
	b, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4096):])
}

func (s *Server) logFile() string { return filepath.Join(s.Dir, "testserver.log") }

// Port returns the port of Addr.
func (s *Server) Port() string {
	_, port, _ := net.SplitHostPort(s.Addr)
	return port
}

// mustWrite writes a file into the server's directory and returns its path.
func (s *Server) mustWrite(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.Dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// run starts the process and waits until the server answers.
func (s *Server) run() error {
	var env []string
	if s.spec.env != nil {
		env = s.spec.env(s)
	}
	proc, err := startProcess(s.path, s.spec.args(s), env, s.Dir, s.logFile(), s.spec.user)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		attempt, done := context.WithTimeout(ctx, time.Second)
		err = s.spec.ready(attempt, s)
		done()
		if err == nil {
			select {
			case <-proc.exited: // somebody else answers there
				return fmt.Errorf("%s ended, and another server answers on %s: %v", s.spec.program, s.Addr, proc.err)
			default:
			}
			s.proc = proc
			return nil
		}
		select {
		case <-proc.exited:
			return fmt.Errorf("%s ended before it answered: %v", s.spec.program, proc.err)
		case <-ctx.Done():
			proc.kill()
			return fmt.Errorf("%s does not answer after %v: %w", s.spec.program, startTimeout, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// mustDir returns a directory for the server. That of a test is closed to other users of the system.
func mustDir(t testing.TB, sp spec) string {
	t.Helper()
	if sp.user == "" || os.Geteuid() != 0 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("", "testserver-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // in the temporary directory
	return dir
}

// mustFind returns the path of the program, or ends the test.
func mustFind(t testing.TB, sp spec) string {
	t.Helper()
	if sp.find != nil {
		for _, path := range sp.find() {
			if path, err := exec.LookPath(path); err == nil {
				return path
			}
		}
	}
	if path, err := exec.LookPath(sp.program); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/sbin"} { // not in every user's PATH
		if path, err := exec.LookPath(filepath.Join(dir, sp.program)); err == nil {
			return path
		}
	}
	message := fmt.Sprintf("NOT RUN: %s needs the program %s (Debian: apt-get install %s)", t.Name(), sp.program, sp.debian)
	if os.Getenv("CI") == "true" {
		t.Fatal(message)
	}
	t.Skip(message)
	return ""
}

// FreeAddr returns a loopback address that nobody listens on, and that no other test is given until this one ends. A port
// that the system chose, and that was closed again for the server to take, was given to another test's server now and
// then, which answered in place of this one, or to a connection, so that a server could not be restarted.
func FreeAddr(t testing.TB) string {
	t.Helper()
	var err error
	for range 1000 {
		// Below what systems choose from for connections (32768 and up on Linux).
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(10_000+rand.IntN(22_000)))
		var reserved net.PacketConn
		if reserved, err = net.ListenPacket("udp", addr); err != nil { // nothing is sent there: it says that the number is taken
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err != nil {
			_ = reserved.Close() // nothing was sent
			continue
		}
		_ = l.Close() // for the server
		t.Cleanup(func() { _ = reserved.Close() })
		return addr
	}
	t.Fatalf("testserver: no port is free: %v", err)
	return ""
}

// lines joins configuration lines, leaving out empty ones.
func lines(in ...string) string {
	return strings.Join(slices.DeleteFunc(in, func(s string) bool { return s == "" }), "\n") + "\n"
}

// first returns the only element of the optional argument o, or its zero value.
func first[T any](o []T) (v T) {
	if len(o) > 0 {
		v = o[0]
	}
	return v
}
