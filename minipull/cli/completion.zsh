#compdef minipull
# zsh completion of minipull; to be sourced after compinit, or kept as _minipull in a folder of fpath
_minipull() {
    local -a lines texts
    local line word tab=$'\t'
    lines=("${(@f)$(PROGRAM completion zsh +"${(@Q)^words[2,CURRENT-1]}" +"${(Q)PREFIX}" 2>/dev/null)}")
    for line in "${(@)lines}"; do
        if [[ $line == :files* ]]; then
            line=${${line#:files}# }
            [[ -z $line ]] || compset -P "${(b)line}"
            _files
        elif [[ -n $line ]]; then
            word=${line%%$tab*} texts=("${line/$tab/ -- }")
            if [[ $word == *[/:=] ]]; then compadd -l -d texts -S '' -- "$word"
            elif [[ $line == *$tab* ]]; then compadd -l -d texts -- "$word"
            else compadd -- "$word"; fi
        fi
    done
}
if [[ $funcstack[1] == _minipull ]]; then _minipull "$@"; else compdef _minipull minipull; fi
