package main

import (
	"fmt"
	"net"
	"syscall"
)

// setBackLog bounds how many connections may wait to be accepted; 0 leaves what
// the system allows, which is what package net asks for.
func setBackLog(l net.Listener, n int) error {
	if n == 0 {
		return nil
	}
	sc, ok := l.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no socket", l)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	// A second listen on a listening socket changes its backlog and nothing else.
	if err := raw.Control(func(fd uintptr) { failure = syscall.Listen(int(fd), n) }); err != nil {
		return err
	}
	return failure
}
