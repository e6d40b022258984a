package testserver_test

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestServers starts, freezes, kills and restarts each server: while it is frozen nothing of it answers, and none of
// its processes is left when it was killed.
func TestServers(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *testserver.Server{
		"memcached": func(t testing.TB) *testserver.Server { return testserver.Memcached(t) },
		"mariadb":   func(t testing.TB) *testserver.Server { return testserver.MariaDB(t) },
		"postgres":  func(t testing.TB) *testserver.Server { return testserver.Postgres(t) },
		"nginx": func(t testing.TB) *testserver.Server {
			return testserver.Nginx(t, testserver.NginxOptions{Server: []string{"location / { return 200 ok; }"}})
		},
		"haproxy": func(t testing.TB) *testserver.Server {
			return testserver.HAProxy(t, testserver.HAProxyOptions{Frontend: []string{"http-request return status 200"}})
		},
		"php": func(t testing.TB) *testserver.Server {
			return testserver.PHP(t, testserver.PHPOptions{Script: "<?php echo 'ok';"})
		},
		"tomcat": func(t testing.TB) *testserver.Server {
			return testserver.Tomcat(t, testserver.TomcatOptions{Route: "a", Pages: map[string]string{"index.jsp": "<%= session.getId() %>"}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := start(t)
			srv.Freeze()
			conn, err := net.Dial("tcp", srv.Addr)
			if err == nil { // by the kernel
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
				_, _ = conn.Write([]byte("version\r\n\r\n"))
				if n, err := conn.Read(make([]byte, 1)); n > 0 || !os.IsTimeout(err) {
					t.Errorf("frozen server: %d bytes, %v, want a timeout", n, err)
				}
			}
			srv.Thaw()
			srv.Stop()
			if conn, err := net.Dial("tcp", srv.Addr); err == nil {
				conn.Close()
				t.Errorf("%s accepts connections after Stop", srv.Addr)
			}
			srv.Restart()
		})
	}
}
