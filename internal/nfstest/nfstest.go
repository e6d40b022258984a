//go:build linux

package nfstest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Main must be called first in TestMain. In the child process it does not return.
func Main() {
	text := os.Getenv(childEnv)
	if text == "" {
		return
	}
	var args childArgs
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		fmt.Fprintln(os.Stderr, "nfstest: run by Start only:", err)
		os.Exit(2)
	}
	runChild(args)
}

// Server is an NFS server in memory, in a child process.
type Server struct {
	tb     testing.TB
	cmd    *exec.Cmd
	rpc    *rpc.Client
	dir    string // holds the mount points
	stderr *output
	exited chan error
	killed bool // by a test, so that stop has to clean up

	mu sync.Mutex // guards the fields below

	mounted int // counts the mount points
}

// Client is one machine that has mounted a server.
type Client struct {
	server *Server
	tb     testing.TB
	dir    string
	once   sync.Once
}

// Start runs a new, empty server until the test ends.
func Start(tb testing.TB, o ...Options) *Server {
	tb.Helper()
	needFUSE(tb)
	sweep(tb)
	var options Options
	if len(o) > 0 {
		options = o[0]
	}
	s, err := start(tb, options)
	if err != nil {
		tb.Fatalf("nfstest: start: %v", err)
	}
	tb.Cleanup(s.stop)
	return s
}

// needFUSE ends the test where no FUSE file system can be mounted.
func needFUSE(tb testing.TB) {
	tb.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		err = f.Close()
	}
	if err == nil && os.Geteuid() != 0 {
		err = errors.New("not root")
	}
	if err == nil {
		_, err = os.ReadFile("/proc/self/syscall")
	}
	if err == nil {
		return
	}
	message := fmt.Sprintf("NOT RUN: %s needs root, /dev/fuse (modprobe fuse) and /proc/PID/syscall: %v", tb.Name(), err)
	if os.Getenv("CI") == "true" {
		tb.Fatal(message)
	}
	tb.Skip(message)
}

func start(tb testing.TB, o Options) (*Server, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "nfstest-")
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(childArgs{dir, o})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s := &Server{tb: tb, dir: dir, stderr: new(output), exited: make(chan error, 1)}
	s.cmd = exec.Command(program)
	// A program with the race detector otherwise waits a second before it ends.
	s.cmd.Env = append(os.Environ(), childEnv+"="+string(text), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	s.cmd.Dir = "/"
	s.cmd.Stderr = s.stderr
	s.cmd.ExtraFiles = []*os.File{childIn, childOut}
	// A signal to the group of the test must not reach it: it has to unmount.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = s.cmd.Start()
	err = errors.Join(err, childIn.Close(), childOut.Close())
	if err != nil {
		return nil, err
	}
	go func() { s.exited <- s.cmd.Wait() }()
	s.rpc = rpc.NewClientWithCodec(jsonrpc.NewClientCodec(pipes{out, closeBoth{in, out}, nil}))
	return s, nil
}

// closeBoth writes to in and closes both pipes.
type closeBoth struct{ in, out *os.File }

func (c closeBoth) Write(b []byte) (int, error) { return c.in.Write(b) }
func (c closeBoth) Close() error                { return errors.Join(c.in.Close(), c.out.Close()) }

// output is what the child says.
type output struct {
	mu sync.Mutex // guards the fields below

	b bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// stop ends the child, and checks that nothing is left mounted.
func (s *Server) stop() {
	s.tb.Helper()
	_ = s.rpc.Close() // which the child takes as its end
	var err error
	select {
	case err = <-s.exited:
	case <-time.After(20 * time.Second):
		_ = s.cmd.Process.Kill() // it may have ended just now
		err = errors.Join(errors.New("it did not end"), <-s.exited)
	}
	if !s.killed && (err != nil || s.stderr.String() != "") {
		s.tb.Errorf("nfstest: the child: %v\n%s", err, s.stderr)
	}
	for _, m := range mounts() {
		if filepath.Dir(m.dir) != s.dir {
			continue
		}
		if !s.killed {
			s.tb.Errorf("nfstest: %s was left mounted", m.dir)
		}
		m.remove(s.tb)
	}
	if err := os.Remove(s.dir); err != nil && !errors.Is(err, os.ErrNotExist) { // the child was first
		s.tb.Errorf("nfstest: %v", err)
	}
}

// kill ends the child with SIGKILL.
func (s *Server) kill() {
	s.killed = true
	_ = s.cmd.Process.Kill() // the test sees whether it has ended
}

// mounted is a mount of some child.
type mounted struct {
	dir string
	pid int
}

// mounts returns the mounts of all children. The format of the file is that of proc(5).
func mounts() (all []mounted) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		before, after, ok := strings.Cut(line, " - ")
		kind := strings.Fields(after)
		if !ok || len(strings.Fields(before)) < 5 || len(kind) < 2 || kind[0] != "fuse."+fsName {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimPrefix(kind[1], fsName+"-"))
		if err == nil {
			all = append(all, mounted{fields[4], pid})
		}
	}
	return all
}

func (m mounted) remove(tb testing.TB) {
	if err := syscall.Unmount(m.dir, syscall.MNT_FORCE|syscall.MNT_DETACH); err != nil {
		tb.Logf("nfstest: unmount %s: %v", m.dir, err)
	}
	_ = os.Remove(m.dir) // empty, and in the temporary directory
}

// sweep removes what is left of a test that was killed together with its child.
func sweep(tb testing.TB) {
	for _, m := range mounts() {
		if !alive(m.pid) {
			m.remove(tb)
			_ = os.Remove(filepath.Dir(m.dir)) // if it was the last
		}
	}
}

// alive reports whether a process runs, and is not just waited for by its parent.
func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return after != "" && after[0] != 'Z' && after[0] != 'X'
}

// call calls the child.
func (s *Server) call(tb testing.TB, method string, args, answer any) {
	tb.Helper()
	if err := s.rpc.Call("child."+method, args, answer); err != nil {
		tb.Fatalf("nfstest: %s: %v\n%s", method, err, s.stderr)
	}
}

// Mount is a new client, until the test ends.
func (s *Server) Mount(tb testing.TB, o ClientOptions) *Client {
	tb.Helper()
	s.mu.Lock()
	s.mounted++
	c := &Client{server: s, tb: tb, dir: filepath.Join(s.dir, "client"+strconv.Itoa(s.mounted))}
	s.mu.Unlock()
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	s.call(tb, "Mount", MountArgs{c.dir, o}, &None{})
	tb.Cleanup(c.Unmount)
	return c
}

// Inject has the fault happen to requests of all clients. Those of a client's own come first.
func (s *Server) Inject(f Fault) {
	s.tb.Helper()
	s.call(s.tb, "Inject", FaultArgs{"", f}, &None{})
}

// ClearFaults ends all faults of the server; requests that are held stay so.
func (s *Server) ClearFaults() {
	s.tb.Helper()
	s.call(s.tb, "Clear", "", &None{})
}

// Crash stops the server: requests get no answer until Recover, and what was written and not committed is lost.
func (s *Server) Crash() {
	s.tb.Helper()
	s.call(s.tb, "Crash", None{}, &None{})
}

// Recover starts the server again after Crash.
func (s *Server) Recover() {
	s.tb.Helper()
	s.call(s.tb, "Recover", None{}, &None{})
}

// PID returns the process ID of the child.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Dir returns where the client has mounted the server.
func (c *Client) Dir() string { return c.dir }

// Inject has the fault happen to requests of this client.
func (c *Client) Inject(f Fault) {
	c.tb.Helper()
	c.server.call(c.tb, "Inject", FaultArgs{c.dir, f}, &None{})
}

// ClearFaults ends the faults of this client; requests that are held stay so.
func (c *Client) ClearFaults() {
	c.tb.Helper()
	c.server.call(c.tb, "Clear", c.dir, &None{})
}

// Release lets the held requests go on: those of ops, or all.
func (c *Client) Release(ops ...Op) {
	c.tb.Helper()
	c.server.call(c.tb, "Release", ReleaseArgs{c.dir, ops}, &None{})
}

// Held returns how many requests are held.
func (c *Client) Held() (n int) {
	c.tb.Helper()
	c.server.call(c.tb, "Held", c.dir, &n)
	return n
}

// WaitHeld waits until n requests are held.
func (c *Client) WaitHeld(n int) {
	c.tb.Helper()
	for deadline := time.Now().Add(30 * time.Second); c.Held() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			c.tb.Fatalf("nfstest: %d requests are held, want %d", c.Held(), n)
		}
	}
}

// Calls returns how many requests of each kind were sent since the last call of it.
func (c *Client) Calls() map[Op]int {
	c.tb.Helper()
	calls := make(map[Op]int)
	c.server.call(c.tb, "Calls", c.dir, &calls)
	return calls
}

// Advance sets the client's clock forward, by which it tells how old its caches are.
func (c *Client) Advance(by time.Duration) {
	c.tb.Helper()
	c.server.call(c.tb, "Advance", AdvanceArgs{c.dir, by}, &None{})
}

// Unmount ends the client. Calls that wait for the server fail. It is called at the end of the test.
func (c *Client) Unmount() {
	c.tb.Helper()
	c.once.Do(func() {
		err := c.server.rpc.Call("child.Unmount", c.dir, &None{})
		if err != nil && !c.server.killed {
			c.tb.Errorf("nfstest: %v", err)
		}
	})
}
