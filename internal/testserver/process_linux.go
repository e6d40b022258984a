package testserver

import (
	"os/exec"
	"syscall"
)

// endWithParent has the kernel kill the child when this process dies, so that a test binary that is killed or
// panics leaves no server behind.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
