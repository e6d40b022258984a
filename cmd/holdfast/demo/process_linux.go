package demo

import (
	"os/exec"
	"syscall"
)

// endWithParent has the kernel kill the child when the supervisor dies, even if the child hangs and does not see
// its standard input end.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
