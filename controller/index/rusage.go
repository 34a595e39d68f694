package index

import (
	"fmt"
	"syscall"
)

// cpuTimes returns the processor time used so far, in seconds, as stats shows it.
func cpuTimes() (user, system string) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return "0.000000", "0.000000"
	}
	return fmt.Sprintf("%d.%06d", r.Utime.Sec, r.Utime.Usec), fmt.Sprintf("%d.%06d", r.Stime.Sec, r.Stime.Usec)
}
