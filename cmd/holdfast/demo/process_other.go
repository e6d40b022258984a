//go:build !linux

package demo

import "os/exec"

func endWithParent(*exec.Cmd) {}
