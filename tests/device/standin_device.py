"""Folders with the system files of devices, and the tools that read and change them, for tests without a device.

Contents and layout are those of real devices: an Orin Nano with JetPack 6.2, an AGX Orin with 5.1.1, a Xavier NX
with 5.1.3, a TX2 with 4.6, and a PC.
"""

import os
from pathlib import Path

# Where a value is this, reading the file fails, as it does for a sensor of a unit that is switched off.
OFF = object()

Tree = dict[str, object]


def write(root: Path, tree: Tree) -> Path:
    """Write files; `OFF` makes one that exists and cannot be read."""
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is OFF:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
    return root


def package(name: str, version: str, status: str = "install ok installed") -> str:
    return (
        f"Package: {name}\nStatus: {status}\nPriority: optional\nSection: multiverse/devel\n"
        f"Maintainer: cudatools <cudatools@nvidia.com>\nArchitecture: arm64\nVersion: {version}\n"
        f"Description: a package\n Version: 0.0 of nothing, in a description\n\n"
    )


def dpkg(**versions: str) -> bytes:
    blocks = [package(name.replace("_", "-"), version) for name, version in versions.items()]
    # Removed, and its configuration kept: it does not count.
    return "".join(
        [package("libnvinfer7", "7.1.3-1+cuda10.2", "deinstall ok config-files"), *blocks]
    ).encode()


def zones(**celsius: object) -> Tree:
    tree: Tree = {}
    for index, (name, value) in enumerate(celsius.items()):
        folder = f"sys/class/thermal/thermal_zone{index}"
        tree[f"{folder}/type"] = name.replace("_", "-")
        tree[f"{folder}/temp"] = value
    return tree


def cooling(**states: int) -> Tree:
    tree: Tree = {}
    for index, (name, state) in enumerate(states.items()):
        tree[f"sys/class/thermal/cooling_device{index}/type"] = name.replace("_", "-")
        tree[f"sys/class/thermal/cooling_device{index}/cur_state"] = state
    return tree


def hwmon(chip: str, number: int, rails: list[tuple[str, int, int]]) -> Tree:
    """An INA3221 as JetPack 5 and later show it: label, mV, mA; and the sum of its shunts, which is no rail."""
    folder = f"sys/bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon{number}"
    tree: Tree = {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": 80}
    for index, (name, millivolts, milliamperes) in enumerate(rails, 1):
        tree[f"{folder}/in{index}_label"] = name
        tree[f"{folder}/in{index}_input"] = millivolts
        tree[f"{folder}/curr{index}_input"] = milliamperes
    return tree


def iio(chip: str, number: int, rails: list[tuple[str, int]]) -> Tree:
    """An INA3221 as JetPack 4 shows it: rail and mW."""
    folder = f"sys/bus/i2c/drivers/ina3221x/{chip}/iio:device{number}"
    tree: Tree = {}
    for index, (name, milliwatts) in enumerate(rails):
        tree[f"{folder}/rail_name_{index}"] = name
        tree[f"{folder}/in_power{index}_input"] = milliwatts
    return tree


def clock(folder: str, pattern: str, low: int, high: int, now: int) -> Tree:
    values = {"min": low, "max": high, "cur": now}
    return {f"{folder}/{pattern.format(name)}": value for name, value in values.items()}


def gpu(name: str, low: int, high: int, now: int) -> Tree:
    return clock(f"sys/class/devfreq/{name}", "{}_freq", low, high, now)


def cpu(policy: int, low: int, high: int, now: int) -> Tree:
    return clock(f"sys/devices/system/cpu/cpufreq/policy{policy}", "scaling_{}_freq", low, high, now)


def memory(total_kb: int, available_kb: int, *swaps: tuple[str, int, int]) -> Tree:
    lines = [f"{name:<40}partition\t{size}\t\t{used}\t\t5" for name, size, used in swaps]
    return {
        "proc/meminfo": f"MemTotal:       {total_kb} kB\nMemFree:          204800 kB\n"
        f"MemAvailable:   {available_kb} kB\nBuffers:           52000 kB",
        "proc/swaps": "\n".join(["Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority", *lines]),
    }


def system(kernel: str, uptime: str, *programs: str) -> Tree:
    tree: Tree = {
        "proc/sys/kernel/osrelease": kernel,
        "proc/uptime": uptime,
        "proc/sys/kernel/random/boot_id": "6f1c4bd0-6fb8-4b0f-9a77-3a62f0f3e0b1",
        "proc/1/cgroup": "0::/init.scope",
    }
    for index, name in enumerate(("systemd", "sshd", *programs), 1):
        tree[f"proc/{index}/comm"] = name
    return tree


def modes(number: int, *names: str) -> Tree:
    tables = [
        f"< POWER_MODEL ID={index} NAME={name} >\nCPU_ONLINE CORE_0 1" for index, name in enumerate(names)
    ]
    tail = f"# mandatory section to configure the default mode\n< PM_CONFIG DEFAULT={number} >"
    return {
        "etc/nvpmodel.conf": "\n\n".join(["< PARAM TYPE=FILE NAME=CPU_ONLINE >", *tables, tail]),
        "var/lib/nvpmodel/status": f"pmode:{number:04d} fmode:quiet",
    }


def orin_nano(root: Path) -> Path:
    return write(
        root,
        {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
            "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia",
            "proc/device-tree/model": b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
            "proc/device-tree/compatible": b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
            "var/lib/dpkg/status": dpkg(
                nvidia_l4t_core="36.4.3-20250107174145",
                libnvinfer10="10.3.0.30-1+cuda12.5",
                libnvinfer_bin="10.3.0.30-1+cuda12.5",
                cuda_cudart_12_6="12.6.68-1",
            ),
            "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}, '
            '"cuda_cudart": {"name": "CUDA Runtime (cudart)", "version": "12.6.68"}}',
            **zones(
                cpu_thermal=48125,
                gpu_thermal=49062,
                cv0_thermal=OFF,
                cv1_thermal=OFF,
                cv2_thermal=OFF,
                soc0_thermal=46718,
                soc1_thermal=47281,
                soc2_thermal=46875,
                tj_thermal=49062,
            ),
            **cooling(pwm_fan=2, cpu_throttle_alert=0, gpu_throttle_alert=0, hot_surface_alert=0),
            **hwmon(
                "1-0040", 1, [("VDD_IN", 5064, 1048), ("VDD_CPU_GPU_CV", 5048, 184), ("VDD_SOC", 5056, 296)]
            ),
            "sys/class/hwmon/hwmon2/oc1_event_cnt": 0,
            "sys/class/hwmon/hwmon2/oc2_event_cnt": 0,
            "sys/class/hwmon/hwmon2/oc3_event_cnt": 0,
            **gpu("17000000.gpu", 306000000, 918000000, 306000000),
            # Devices that are no GPU, and come first by name.
            **gpu("15340000.vic", 115200000, 729600000, 115200000),
            **cpu(0, 729600, 1344000, 729600),
            **cpu(4, 729600, 1344000, 1190400),
            **modes(1, "15W", "25W", "MAXN_SUPER"),
            **memory(7802916, 6321000, *[(f"/dev/zram{n}", 650240, 0) for n in range(6)]),
            **system("5.15.148-tegra", "5342.17 31022.92"),
        },
    )


def agx_orin(root: Path) -> Path:
    return write(
        root,
        {
            "etc/nv_tegra_release": "# R35 (release), REVISION: 3.1, GCID: 32827747, BOARD: t186ref, EABI: aarch64, "
            "DATE: Sun Mar 19 15:19:21 UTC 2023",
            "proc/device-tree/model": b"Jetson AGX Orin Developer Kit\0",
            "proc/device-tree/compatible": b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
            "var/lib/dpkg/status": dpkg(
                nvidia_l4t_core="35.3.1-20230319081403",
                nvidia_jetpack="5.1.1-b56",
                libnvinfer8="8.5.2-1+cuda11.4",
            ),
            "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "11.4.19"}}',
            **zones(
                CPU_therm=47000,
                GPU_therm=-256000,
                CV0_therm=-256000,
                CV1_therm=-256000,
                CV2_therm=-256000,
                SOC0_therm=45031,
                tj_therm=47000,
            ),
            **cooling(pwm_fan=1, cpu_throttle_alert=0, gpu_throttle_alert=0),
            **hwmon(
                "1-0040",
                3,
                [("VDD_GPU_SOC", 19896, 201), ("VDD_CPU_CV", 19928, 40), ("VIN_SYS_5V0", 5040, 680)],
            ),
            **hwmon("1-0041", 4, [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5040, 120), ("NC", 0, 0)]),
            **gpu("17000000.ga10b", 306000000, 612000000, 306000000),
            **cpu(0, 115200, 1728000, 729600),
            **cpu(4, 115200, 1728000, 729600),
            **modes(2, "MAXN", "MODE_15W", "MODE_30W", "MODE_50W"),
            **memory(64349380, 60211468, *[(f"/dev/zram{n}", 2681224, 0) for n in range(12)]),
            **system("5.10.104-tegra", "120.5 1300.2", "gdm3", "Xorg", "gnome-shell"),
        },
    )


def xavier_nx(root: Path) -> Path:
    return write(
        root,
        {
            # No /etc/nv_tegra_release, as in some root file systems: the package tells.
            "proc/device-tree/model": b"NVIDIA Jetson Xavier NX Developer Kit\0",
            "proc/device-tree/compatible": b"nvidia,p3509-0000+p3668-0001\0nvidia,tegra194\0",
            "var/lib/dpkg/status": dpkg(
                nvidia_l4t_core="35.5.0-20240219203809",
                libnvinfer8="8.5.2-1+cuda11.4",
                cuda_cudart_11_4="11.4.298-1",
            ),
            **zones(CPU_therm=43500, GPU_therm=42000, AUX_therm=42500, AO_therm=43000, PMIC_Die=50000),
            **hwmon(
                "7-0040", 2, [("VDD_IN", 5024, 816), ("VDD_CPU_GPU_CV", 5024, 96), ("VDD_SOC", 5024, 272)]
            ),
            **gpu("17000000.gv11b", 114750000, 114750000, 114750000),
            **cpu(0, 1190400, 1420800, 1190400),
            **modes(2, "MODE_15W_2CORE", "MODE_15W_4CORE", "MODE_15W_6CORE", "MODE_10W_2CORE"),
            **memory(6998000, 1100000, ("/dev/zram0", 1166000, 20000), ("/swapfile", 8388604, 512)),
            **system("5.10.192-tegra", "88.01 400.1", "Xorg"),
        },
    )


def tx2(root: Path) -> Path:
    return write(
        root,
        {
            "etc/nv_tegra_release": "# R32 (release), REVISION: 6.1, GCID: 27863751, BOARD: t186ref, EABI: aarch64, "
            "DATE: Mon Jul 26 19:36:31 UTC 2021",
            "proc/device-tree/model": b"quill\0",
            "proc/device-tree/compatible": b"nvidia,p2597-0000+p3310-1000\0nvidia,quill\0nvidia,tegra186\0",
            "proc/device-tree/nvidia,dtsfilename": b"/dvs/kernel-dts/tegra186-quill-p3310-1000-c03-00-base.dts\0",
            "var/lib/dpkg/status": dpkg(
                nvidia_l4t_core="32.6.1-20210726122859", libnvinfer8="8.0.1-1+cuda10.2"
            ),
            "usr/local/cuda/version.txt": "CUDA Version 10.2.300",
            **zones(
                BCPU_therm=38500, MCPU_therm=38500, GPU_therm=36500, PMIC_Die=100000, thermal_fan_est=37900
            ),
            **iio("0-0040", 0, [("VDD_SYS_GPU", 152), ("VDD_SYS_SOC", 457), ("VDD_4V0_WIFI", 0)]),
            **iio("0-0041", 1, [("VDD_IN", 2324), ("VDD_SYS_CPU", 305), ("VDD_SYS_DDR", 326)]),
            **gpu("17000000.gp10b", 114750000, 1300500000, 114750000),
            **cpu(0, 345600, 2035200, 345600),
            **modes(0, "MAXN", "MAXQ", "MAXP_CORE_ALL", "MAXP_CORE_ARM"),
            **memory(8039936, 6400000),
            **system("4.9.253-tegra", "1000.0 4000.0"),
        },
    )


def pc(root: Path) -> Path:
    return write(
        root,
        {
            "var/lib/dpkg/status": package("libc6", "2.36-9+deb12u9").encode(),
            **zones(acpitz=27800, x86_pkg_temp=51000, iwlwifi_1=40000),
            **cpu(0, 800000, 4700000, 1200000),
            **memory(32659184, 21450000, ("/dev/nvme0n1p3", 8388604, 0)),
            **system("6.1.0-32-amd64", "99881.2 700000.1", "gnome-shell", "Xwayland"),
            ".dockerenv": b"",
        },
    )


BOARDS = {"orin-nano": orin_nano, "agx-orin": agx_orin, "xavier-nx": xavier_nx, "tx2": tx2, "pc": pc}

SUDO = """#!/bin/sh
echo "sudo $*" >> "$LOG"
[ "$1" = -n ] || exit 90
shift
[ "$SUDO" = refuse ] && { echo "sudo: a password is required" >&2; exit 1; }
exec "$@"
"""

# Prints and asks as NVIDIA's does; the upper limit of the GPU depends on the mode.
NVPMODEL = """#!/bin/sh
conf="$ROOT/etc/nvpmodel.conf" status="$ROOT/var/lib/nvpmodel/status"
if [ "$1" = -q ]; then
    id=$(sed 's/pmode:0*\\([0-9]\\).*/\\1/' "$status")
    name=$(sed -n "s/.*ID=$id NAME=\\([^ ]*\\) .*/\\1/p" "$conf")
    echo "NVPM WARN: fan mode is not set!"
    printf 'NV Power Mode: %s\\n%s\\n' "$name" "$id"
    exit 0
fi
echo "nvpmodel $*" >> "$LOG"
[ "$1" = -m ] || exit 91
grep -q "ID=$2 " "$conf" || { echo "NVPM ERROR: invalid power mode ID $2" >&2; exit 255; }
if [ -n "$REBOOT" ]; then
    echo "NVPM WARN: Reboot required for changing to this power mode: $2"
    echo "NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"
    read answer
    case "$answer" in YES|yes) echo REBOOTED >> "$LOG";; esac
    exit 0
fi
printf 'pmode:%04d fmode:quiet\\n' "$2" > "$status"
for gpu in "$ROOT"/sys/class/devfreq/17000000.*; do
    echo "$((500000000 + 100000000 * $2))" > "$gpu/max_freq"
    echo 306000000 > "$gpu/min_freq"
done
"""

# Stores lower limits alone, and asks before it overwrites, as NVIDIA's does.
JETSON_CLOCKS = """#!/bin/sh
echo "jetson_clocks $*" >> "$LOG"
limits=$(cd "$ROOT" && ls sys/class/devfreq/*/min_freq sys/devices/system/cpu/cpufreq/*/scaling_min_freq)
case "$1" in
--show)
    echo "SOC family:tegra234  Machine:a stand-in"
    echo "EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=1" ;;
--store)
    if [ -e "$2" ]; then echo "File $2 already exists. Can I overwrite it? Y/N:"; read answer; exit 1; fi
    [ -n "$STORES_NOTHING" ] && exit 0
    for limit in $limits; do echo "/$limit:$(cat "$ROOT/$limit")" >> "$2"; done ;;
--restore)
    [ -e "$2" ] || { echo "Error: $2 file not found !"; exit 1; }
    sleep "${SLOW:-0}"
    for line in $(cat "$2"); do echo "${line#*:}" > "$ROOT${line%%:*}"; done
    echo "jetson_clocks restored" >> "$LOG" ;;
"")
    for limit in $limits; do cat "$ROOT/$(echo "$limit" | sed 's/min_freq/max_freq/')" > "$ROOT/$limit"; done ;;
*) exit 92 ;;
esac
"""


def programs(folder: Path, root: Path, **settings: str) -> dict[str, str]:
    """Write the tools into a folder and return an environment in which they are found.

    `LOG` names the file where they note how they were called; settings change what they do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"sudo": SUDO, "nvpmodel": NVPMODEL, "jetson_clocks": JETSON_CLOCKS}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), "/usr/bin", "/bin"])
    return {"PATH": path, "ROOT": str(root), "LOG": str(folder / "log"), **settings}


def called(environ: dict[str, str]) -> list[str]:
    """Return how the tools were called, without the folder that they lie in."""
    log = Path(environ["LOG"])
    return (
        [line.replace(f"{log.parent}/", "") for line in log.read_text().splitlines()] if log.exists() else []
    )
