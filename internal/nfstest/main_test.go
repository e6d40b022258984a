//go:build linux

package nfstest

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	Main()
	if mode := os.Getenv(victimEnv); mode != "" {
		victim(mode)
	}
	goleak.VerifyTestMain(m)
}

// two returns two clients of one server.
func two(t *testing.T, o ClientOptions) (s *Server, a, b *Client) {
	t.Helper()
	s = Start(t)
	return s, s.Mount(t, o), s.Mount(t, o)
}

func (c *Client) path(name ...string) string {
	return filepath.Join(append([]string{c.dir}, name...)...)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

func wantText(t *testing.T, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != want {
		t.Errorf("%s holds %q, %v, want %q", filepath.Base(path), b, err, want)
	}
}

func wantErr(t *testing.T, what string, err error, want syscall.Errno) {
	t.Helper()
	if want == 0 && err != nil || want != 0 && !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// know looks twice: if the answer about a name says that its directory has changed, the name is not believed a second time.
func know(t *testing.T, path string) {
	t.Helper()
	wantStat(t, path, 0)
	wantStat(t, path, 0)
}

func wantStat(t *testing.T, path string, want syscall.Errno) {
	t.Helper()
	_, err := os.Lstat(path)
	wantErr(t, "stat "+filepath.Base(path), err, want)
}
