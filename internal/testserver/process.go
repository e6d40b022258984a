package testserver

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// process is a child process that somebody waits for.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone
	err    error         // what Wait said, set before exited is closed
}

// startProcess starts a program whose output is appended to logFile.
func startProcess(path string, args []string, dir, logFile string) (*process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(path, args...), exited: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	endWithParent(p.cmd)
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

// signal sends sig to this process and no other: os.Process remembers that it was waited for, so a process ID that
// the system has given to somebody else meanwhile is never hit.
func (p *process) signal(sig syscall.Signal) error {
	if p == nil {
		return errors.New("not running")
	}
	return p.cmd.Process.Signal(sig)
}

// kill ends the process and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // already gone is fine
	<-p.exited
}
