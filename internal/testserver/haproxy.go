package testserver

import "testing"

// HAProxyOptions say what [HAProxy] serves.
type HAProxyOptions struct {
	// Global and Defaults are lines of these sections: "nbthread 1", "timeout connect 1s". Defaults begin with
	// "mode http" and time limits of 5 s to connect and 30 s for the rest.
	Global, Defaults []string
	// Frontend are lines of the frontend section, which already binds Server.Addr: "default_backend app".
	Frontend []string
	// Sections are whole further sections: "backend app", "  server a 127.0.0.1:3000".
	Sections []string
}

// HAProxy starts haproxy in front of other servers.
func HAProxy(t testing.TB, o HAProxyOptions) *Server {
	t.Helper()
	return start(t, spec{
		program: "haproxy",
		debian:  "haproxy",
		args: func(s *Server) []string {
			conf := append([]string{"global"}, o.Global...)
			conf = append(conf, "defaults", "mode http", "timeout connect 5s", "timeout client 30s", "timeout server 30s")
			conf = append(conf, o.Defaults...)
			conf = append(conf, "frontend clients", "bind "+s.Addr)
			conf = append(conf, o.Frontend...)
			conf = append(conf, o.Sections...)
			return []string{"-db", "-f", s.mustWrite("haproxy.cfg", lines(conf...))}
		},
		ready: httpReady,
	}, nil)
}
