package testserver

import (
	"context"
	"net/http"
	"os"
	"testing"
)

// NginxOptions say what [Nginx] serves.
type NginxOptions struct {
	// Main are lines outside every block: "worker_processes 1;".
	Main []string
	// HTTP are lines of the http block: "upstream app { server 127.0.0.1:3000; }".
	HTTP []string
	// Server are lines of the server block, which already listens on Server.Addr: "location / { proxy_pass http://app; }".
	Server []string
}

// Nginx starts nginx in front of other servers.
func Nginx(t testing.TB, o NginxOptions) *Server {
	t.Helper()
	return start(t, spec{
		program: "nginx",
		debian:  "nginx-light",
		args: func(s *Server) []string {
			conf := s.mustWrite("nginx.conf", nginxConfig(s, o))
			return []string{"-p", s.Dir, "-e", "stderr", "-c", conf}
		},
		ready: httpReady,
	}, nil)
}

func nginxConfig(s *Server, o NginxOptions) string {
	conf := []string{"daemon off;", "pid nginx.pid;"}
	if os.Geteuid() == 0 {
		conf = append(conf, "user root;") // the directories below are closed to others
	}
	conf = append(conf, o.Main...)
	conf = append(conf, "events { worker_connections 4096; }", "http {", "access_log off;")
	for _, what := range []string{"client_body", "proxy", "fastcgi", "scgi", "uwsgi"} {
		conf = append(conf, what+"_temp_path "+what+";")
	}
	conf = append(conf, o.HTTP...)
	conf = append(conf, "server {", "listen "+s.Addr+";")
	conf = append(conf, o.Server...)
	return lines(append(conf, "}", "}")...)
}

// httpReady asks for a page that need not exist.
func httpReady(ctx context.Context, s *Server) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addr+"/testserver-ready", nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(r)
	if err == nil {
		_ = res.Body.Close() // whatever it says, it answers
	}
	return err
}
