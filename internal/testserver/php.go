package testserver

import (
	"os"
	"path/filepath"
	"testing"
)

// PHPOptions say what [PHP] serves.
type PHPOptions struct {
	// Script answers every request.
	Script string
	// Settings are of php.ini: "session.use_cookies=0". Sessions are in files of this server's own unless they say
	// otherwise.
	Settings []string
}

// PHP starts PHP's own web server, which answers one request after the other.
func PHP(t testing.TB, o PHPOptions) *Server {
	t.Helper()
	return start(t, spec{
		program: "php",
		debian:  "php-cli",
		prepare: func(s *Server) error { return os.Mkdir(filepath.Join(s.Dir, "sessions"), 0o700) },
		args: func(s *Server) []string {
			args := []string{"-S", s.Addr, "-d", "session.save_path=" + filepath.Join(s.Dir, "sessions")}
			for _, setting := range o.Settings {
				args = append(args, "-d", setting)
			}
			return append(args, s.mustWrite("script.php", o.Script))
		},
		ready: httpReady,
	}, nil)
}
