package testserver_test

import (
	"bufio"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRedis(t *testing.T) {
	srv := testserver.Redis(t)
	wantPong(t, srv.Addr)

	pid := srv.PID()
	srv.Stop()
	srv.Stop()
	if conn, err := net.Dial("tcp", srv.Addr); err == nil {
		conn.Close()
		t.Errorf("%s accepts connections after Stop", srv.Addr)
	}
	srv.Restart()
	wantPong(t, srv.Addr)
	if srv.PID() == pid {
		t.Errorf("Restart kept process %d", pid)
	}

	srv.Freeze()
	if reply, err := ping(srv.Addr, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("frozen server: PING = %q, %v, want a timeout", reply, err)
	}
	srv.Thaw()
	wantPong(t, srv.Addr)
	srv.Freeze() // Cleanup has to end it all the same
}

func TestRedisOptions(t *testing.T) {
	srv := testserver.Redis(t, testserver.RedisOptions{Password: "secret"})
	if reply, err := ping(srv.Addr, time.Second); !strings.HasPrefix(reply, "-NOAUTH") {
		t.Errorf("PING without the password = %q, %v, want -NOAUTH", reply, err)
	}
	testserver.Redis(t, testserver.RedisOptions{TLS: true}) // ready means that it spoke TLS
}

// A missing program skips with a message that can be searched for, and fails in CI.
func TestMissingProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := os.Stat("/usr/sbin/redis-server"); err == nil {
		t.Skip("redis-server is found without PATH here")
	}
	for _, ci := range []string{"", "true"} {
		t.Setenv("CI", ci)
		f := &fakeTB{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			testserver.Redis(f)
		}()
		<-done
		if !strings.HasPrefix(f.message, "NOT RUN: ") || !strings.Contains(f.message, "apt-get install redis-server") {
			t.Errorf("CI=%q: message %q", ci, f.message)
		}
		if f.fatal != (ci == "true") {
			t.Errorf("CI=%q: fatal = %v", ci, f.fatal)
		}
	}
}

func wantPong(t *testing.T, addr string) {
	t.Helper()
	if reply, err := ping(addr, 5*time.Second); reply != "+PONG\r\n" {
		t.Errorf("PING = %q, %v, want +PONG", reply, err)
	}
}

func ping(addr string, timeout time.Duration) (string, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return "", err
	}
	return bufio.NewReader(conn).ReadString('\n')
}
