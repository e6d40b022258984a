//go:build linux

package nfstest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKilledChild: when the child is killed, calls that hang fail, and nothing is left mounted.
func TestKilledChild(t *testing.T) {
	var dir string
	t.Run("kill", func(t *testing.T) {
		s, a, b := two(t, ClientOptions{})
		dir = s.dir
		a.Inject(Fault{Kind: Delay, Count: Always, Hold: true})
		done := make(chan error, 1)
		go func() { done <- os.Mkdir(a.path("d"), 0o700) }()
		a.WaitHeld(1)
		s.kill()
		if err := <-done; err == nil {
			t.Error("the directory was made after the child was killed")
		}
		wantErr(t, "a call after the child was killed", os.Mkdir(b.path("d"), 0o700), syscall.ENOTCONN)
	})
	wantNothing(t, dir)
}

// TestEndedTest: after a test, and after one that failed with files open and calls under way, nothing is left mounted.
func TestEndedTest(t *testing.T) {
	var dir string
	done := make(chan error, 1)
	t.Run("leave", func(t *testing.T) {
		s, a, b := two(t, ClientOptions{})
		dir = s.dir
		f, err := os.Create(a.path("f"))
		must(t, err)
		t.Cleanup(func() { _ = f.Close() }) // after the unmount
		root, err := os.OpenRoot(b.dir)
		must(t, err)
		t.Cleanup(func() { _ = root.Close() })
		s.Inject(Fault{Kind: Delay, Count: Always, Hold: true})
		go func() { done <- os.Mkdir(a.path("d"), 0o700) }()
		a.WaitHeld(1)
	})
	if err := <-done; err == nil {
		t.Error("the directory was made after the end of the test")
	}
	wantNothing(t, dir)
}

// TestKilledTest: when the test process is killed, also while all its calls hang, the child unmounts and ends.
func TestKilledTest(t *testing.T) {
	needFUSE(t)
	for _, mode := range []string{"idle", "hang"} {
		t.Run(mode, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), victimEnv+"="+mode)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			killed := cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
			must(t, errors.Join(err, killed))
			var dir string
			var child int
			_, err = fmt.Sscan(line, &dir, &child)
			must(t, err)
			eventually(t, func() bool {
				_, err := os.Lstat(dir)
				return os.IsNotExist(err) && !alive(child)
			})
			wantNothing(t, dir)
		})
	}
}

// TestSweep: what was left when a test and its child were killed together is removed by the next.
func TestSweep(t *testing.T) {
	needFUSE(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"=both")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if state := cmd.ProcessState; state == nil || state.Success() {
		t.Fatalf("the process was to kill itself: %v", err)
	}
	var dir string
	var child int
	_, err = fmt.Sscan(string(out), &dir, &child)
	must(t, err)
	eventually(t, func() bool { return !alive(child) })
	s := Start(t)
	wantNothing(t, dir)
	must(t, os.WriteFile(s.Mount(t, ClientOptions{}).path("f"), nil, 0o600))
}

const victimEnv = "HOLDFAST_NFSTEST_VICTIM"

// victim is a test process that is killed: it mounts, says where, and waits.
func victim(mode string) {
	s, err := start(nil, Options{})
	if err == nil {
		err = os.Mkdir(filepath.Join(s.dir, "client1"), 0o700)
	}
	var c *Client
	if err == nil {
		c = &Client{server: s, dir: filepath.Join(s.dir, "client1")}
		err = s.rpc.Call("child.Mount", MountArgs{Dir: c.dir}, &None{})
	}
	if err == nil && mode == "hang" {
		fault := Fault{Kind: Delay, Count: Always, Hold: true}
		err = s.rpc.Call("child.Inject", FaultArgs{c.dir, fault}, &None{})
		for range 5 {
			go func() { _ = os.Mkdir(filepath.Join(c.dir, "d"), 0o700) }() // until it is killed
		}
		for held := 0; err == nil && held == 0; time.Sleep(time.Millisecond) {
			err = s.rpc.Call("child.Held", c.dir, &held)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.dir, s.PID())
	if mode == "both" {
		_ = syscall.Kill(s.PID(), syscall.SIGKILL) // as is this process
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	time.Sleep(time.Hour)
}

func wantNothing(t *testing.T, dir string) {
	t.Helper()
	for _, m := range mounts() {
		if strings.HasPrefix(m.dir, dir) {
			t.Errorf("%s is still mounted", m.dir)
		}
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
}
