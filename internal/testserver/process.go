package testserver

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is a child process that somebody waits for.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone
	err    error         // what Wait said, set before exited is closed
}

// startProcess starts a program, with env added to the environment, whose output is appended to logFile, as a user of the
// system unless that is "".
func startProcess(path string, args, env []string, dir, logFile, user string) (*process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(path, args...), exited: make(chan struct{})}
	if env != nil {
		p.cmd.Env = append(os.Environ(), env...)
	}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	endWithParent(p.cmd)
	if err := runAs(p.cmd, user, dir); err != nil {
		_ = log.Close() // nothing was written
		return nil, err
	}
	started := make(chan error, 1)
	go func() { // ends with the process, for which kill waits
		// The kernel's "parent died" signal is bound to the thread that started the child, so that thread has
		// to live as long as the child.
		runtime.LockOSThread()
		defer log.Close()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// signal sends sig to this process and to those that it has started. os.Process remembers that it was waited for, so a
// process ID that the system has given to somebody else meanwhile is not hit; the others are looked up just before.
func (p *process) signal(sig syscall.Signal) error {
	if p == nil {
		return errors.New("not running")
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		return err
	}
	p.signalDescendants(sig)
	return nil
}

// signalDescendants reports how many there were.
func (p *process) signalDescendants(sig syscall.Signal) int {
	pids := descendants(p.cmd.Process.Pid)
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig) // it may have ended meanwhile
	}
	return len(pids)
}

// kill ends the process, and those that it has started, and waits until they are gone.
func (p *process) kill() {
	// Stopped, it starts no others and keeps those it has. One signal may cross with a fork, the next does not.
	if p.cmd.Process.Signal(syscall.SIGSTOP) == nil {
		for range 2 {
			p.signalDescendants(syscall.SIGKILL)
		}
		for deadline := time.Now().Add(10 * time.Second); len(descendants(p.cmd.Process.Pid)) > 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	_ = p.cmd.Process.Kill() // already gone is fine
	<-p.exited
}
