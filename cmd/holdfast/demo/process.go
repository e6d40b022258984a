package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"
)

const (
	startTimeout = 10 * time.Second // from the start of a process until it serves
	stopTimeout  = 5 * time.Second  // for it to end by itself
	storeTimeout = 5 * time.Second  // to open the store
)

// answer is the line that a child writes to its standard output.
type answer struct {
	Addr  string `json:"addr"` // where it listens
	Error string `json:"error"`
}

// process is a child, running or not.
type process struct {
	cmd    *exec.Cmd
	stdin  *os.File // its end is the child's order to end
	addr   string
	exited chan struct{} // closed when the process is gone
	err    error         // how it ended, set before exited is closed
}

// startProcess runs exe with a hidden command, and returns when the child serves.
func startProcess(ctx context.Context, exe, command string, order any, files ...*os.File) (*process, error) {
	p, stdout, err := spawn(exe, command, files)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", command, err)
	}
	defer stdout.Close()
	_ = stdout.SetReadDeadline(time.Now().Add(startTimeout)) // pipes have deadlines
	stop := context.AfterFunc(ctx, func() { _ = stdout.SetReadDeadline(time.Now()) })
	defer stop()
	var a answer
	if err = json.NewEncoder(p.stdin).Encode(order); err == nil {
		if err = json.NewDecoder(stdout).Decode(&a); err == nil && a.Error != "" {
			err = errors.New(a.Error)
		}
	}
	if err != nil {
		p.kill()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("start %s: %w", command, err)
	}
	p.addr = a.Addr
	return p, nil
}

// spawn starts the child and returns its standard output.
func spawn(exe, command string, files []*os.File) (p *process, stdout *os.File, err error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer inR.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		_ = inW.Close()
		return nil, nil, err
	}
	defer outW.Close()
	p = &process{cmd: exec.Command(exe, command), stdin: inW, exited: make(chan struct{})}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr, p.cmd.ExtraFiles = inR, outW, os.Stderr, files
	endWithParent(p.cmd)
	started := make(chan error, 1)
	go func() { // ends with the process, which kill and stop wait for
		// The kernel sends the signal of endWithParent when the thread that started the child ends.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // ProcessState says more
			p.err = errors.New(p.cmd.ProcessState.String())
			_ = p.stdin.Close()
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		_, _ = inW.Close(), outR.Close()
		return nil, nil, err
	}
	return p, outR, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// up reports whether the process runs. It may be called on nil.
func (p *process) up() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// kill ends the process as a crash does, with SIGKILL, and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails if it is gone already
	<-p.exited
}

// stop has the process end by itself, or else kills it.
func (p *process) stop() {
	_ = p.stdin.Close() // fails if it is gone already
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
		p.kill()
	}
}
