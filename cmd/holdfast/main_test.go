package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/internal/testserver"
)

// TestMain makes this binary the program where beHoldfast is in the environment, which the demo's processes inherit.
func TestMain(m *testing.M) {
	if os.Getenv(beHoldfast) != "" {
		main()
		return
	}
	testserver.Main(m)
}

const beHoldfast = "TEST_BINARY_IS_HOLDFAST"

// command returns the program, ready to be run.
func command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	// A program with the race detector waits a second before it ends, and the demo is five of them.
	cmd.Env = append(os.Environ(), beHoldfast+"=1", "GORACE=atexit_sleep_ms=10")
	return cmd
}

// holdfast runs the program to its end and returns its exit status and what it printed.
func holdfast(t testing.TB, env []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := command(t, args...)
	cmd.Env = append(cmd.Env, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	kill := time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// eventually waits until ok returns nil, and fails the test if that takes too long.
func eventually(t testing.TB, within time.Duration, ok func() error) {
	t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("after %v: %v", within, err)
		case <-tick.C:
		}
	}
}
