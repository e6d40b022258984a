package testserver

import "testing"

// PgBouncer starts pgbouncer in transaction mode in front of a PostgreSQL server, with few connections to it, so that
// each statement of a client may find another one. If the tests run as root it runs as user postgres, as it refuses to
// run as root.
func PgBouncer(t testing.TB, server *Server) *Server {
	t.Helper()
	return start(t, spec{
		program: "pgbouncer",
		debian:  "pgbouncer",
		user:    "postgres",
		args: func(s *Server) []string {
			users := s.mustWrite("users", `"`+DatabaseUser+`" "`+DatabasePassword+"\"\n")
			return []string{s.mustWrite("pgbouncer.ini", lines(
				"[databases]",
				Database+" = host=127.0.0.1 port="+server.Port()+" dbname="+Database,
				"[pgbouncer]",
				"listen_addr = 127.0.0.1",
				"listen_port = "+s.Port(),
				"unix_socket_dir =",
				"auth_type = scram-sha-256",
				"auth_file = "+users,
				"pool_mode = transaction",
				"default_pool_size = 3",
				"server_login_retry = 1",
			))}
		},
		ready: postgresReady,
	}, nil)
}
