package testserver

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// MemcachedOptions say how [Memcached] runs the server.
type MemcachedOptions struct {
	// Args are further arguments: "-m", "8".
	Args []string
}

// Memcached starts memcached.
func Memcached(t testing.TB, o ...MemcachedOptions) *Server {
	t.Helper()
	opt := first(o)
	return start(t, spec{
		program: "memcached",
		debian:  "memcached",
		args: func(s *Server) []string {
			args := []string{"-l", "127.0.0.1", "-p", s.Port(), "-U", "0"}
			if os.Geteuid() == 0 {
				args = append(args, "-u", "root")
			}
			return append(args, opt.Args...)
		},
		ready: memcachedReady,
	}, nil)
}

func memcachedReady(ctx context.Context, s *Server) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // fails on a closed connection only, and then the read says so
	}
	if _, err := conn.Write([]byte("version\r\n")); err != nil {
		return err
	}
	reply, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(reply, "VERSION ") {
		err = fmt.Errorf("version is answered with %q", reply)
	}
	return err
}
