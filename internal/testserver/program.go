package testserver

import "testing"

// ProgramOptions say which program [Program] runs.
type ProgramOptions struct {
	// Path is the program: a path, or a name that is looked for. Debian is the package that has it.
	Path, Debian string
	// Args returns its arguments, of which one says that it is to listen on addr. Files that it needs can be written to dir.
	Args func(addr, dir string) []string
	// Env is added to the environment: "GOMAXPROCS=1".
	Env []string
}

// Program starts a server of any kind that answers HTTP.
func Program(t testing.TB, o ProgramOptions) *Server {
	t.Helper()
	return start(t, spec{
		program: o.Path,
		debian:  o.Debian,
		args:    func(s *Server) []string { return o.Args(s.Addr, s.Dir) },
		env:     func(*Server) []string { return o.Env },
		ready:   httpReady,
	}, nil)
}

// Find returns the path of a program that a test runs itself, or ends the test. debian is the package that has it.
func Find(t testing.TB, program, debian string) string {
	t.Helper()
	return mustFind(t, spec{program: program, debian: debian})
}
